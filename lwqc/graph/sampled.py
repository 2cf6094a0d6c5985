"""Sizes of one tensor at two settings of the dynamic dimensions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Sizes = tuple[int, ...]


@dataclass(frozen=True)
class Sampled:
    """Sizes of one tensor in two settings."""

    first: Sizes
    second: Sizes

    @property
    def rank(self) -> int:
        """Number of dimensions."""
        return len(self.first)

    def static(self, axis: int) -> bool:
        """Whether the size of an axis is the same in both settings."""
        return self.first[axis] == self.second[axis]


def pair(first: Mapping[str, Sizes], second: Mapping[str, Sizes]) -> dict[str, Sampled]:
    """Tensors whose rank is the same in both settings."""
    return {
        name: Sampled(sizes, second[name])
        for name, sizes in first.items()
        if name in second and len(second[name]) == len(sizes)
    }
