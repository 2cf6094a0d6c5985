"""How many channels each group loses, so that a model meets a budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Keep = dict[str, NDArray[np.bool_]]
Cost = Callable[[Keep], int]


@dataclass(frozen=True)
class Candidate:
    """A group that may lose channels.

    order [size]: the least important first. price [size]: what each costs in that order, in the
    unit in which groups are compared. step: channels are kept in multiples of it. least: channels
    that stay at least.
    """

    name: str
    order: NDArray[np.intp]
    price: NDArray[np.float64]
    step: int = 1
    least: int = 1

    @property
    def size(self) -> int:
        """Number of channels."""
        return len(self.order)

    def keep(self, removed: int) -> NDArray[np.bool_]:
        """Mask after removing about that many; whole steps stay, never fewer than `least`."""
        kept = math.ceil((self.size - removed) / self.step) * self.step
        kept = max(kept, math.ceil(self.least / self.step) * self.step)
        mask = np.ones(self.size, np.bool_)
        if kept < self.size:
            mask[self.order[: self.size - kept]] = False
        return mask


def global_budget(
    candidates: Sequence[Candidate], cost: Cost, limit: float, fixed: Mapping[str, int]
) -> Keep:
    """Remove the channels with the lowest price in the whole model until `cost` <= `limit`.

    fixed: group -> channels to remove, whatever they cost. Returns what comes closest when the
    limit cannot be met.
    """
    prices = {c.name: np.maximum.accumulate(c.price) for c in candidates}
    levels = np.unique(np.concatenate(list(prices.values()) or [np.zeros(0)]))

    def at(level: float) -> Keep:
        counts = {n: int(np.searchsorted(p, level, side="right")) for n, p in prices.items()}
        return _masks(candidates, {**counts, **fixed})

    low, high = -1, len(levels) - 1
    while low + 1 < high:
        middle = (low + high) // 2
        if cost(at(levels[middle])) <= limit:
            high = middle
        else:
            low = middle
    return at(levels[high]) if len(levels) else _masks(candidates, fixed)


def local_budget(
    candidates: Sequence[Candidate], cost: Cost, limit: float, fixed: Mapping[str, int]
) -> Keep:
    """Remove the same share of every group until `cost` <= `limit`; see `global_budget`."""

    def at(ratio: float) -> Keep:
        return local_ratio(candidates, ratio, fixed)

    low, high = 0.0, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (low, middle) if cost(at(middle)) <= limit else (middle, high)
    return at(high)


def local_ratio(candidates: Sequence[Candidate], ratio: float, fixed: Mapping[str, int]) -> Keep:
    """Remove a share of every group."""
    counts = {c.name: round(c.size * ratio) for c in candidates}
    return _masks(candidates, {**counts, **fixed})


def _masks(candidates: Sequence[Candidate], removed: Mapping[str, int]) -> Keep:
    masks = {c.name: c.keep(removed.get(c.name, 0)) for c in candidates}
    return {name: mask for name, mask in masks.items() if not mask.all()}
