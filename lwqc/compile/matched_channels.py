"""Which channels of a wide tensor those of a narrow one are: by correlation on the same inputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
_STILL = 1e-12  # variance over mean square of channels that vary by no more than float32 tells
_ALIKE = 0.7  # least mean correlation of channels that are taken for the same
_EACH = 0.5  # the same of a single one
_MOST = 1 << 16  # numbers of each channel that are compared
_CHANCE = 2.0  # times what chance gives, which a mean correlation must reach


@dataclass(frozen=True)
class MatchedChannels:
    """Channels of the wide tensor. axis: along which they are; index, likeness: of each narrow one.

    width: how many the wide tensor has. likeness: Pearson's correlation, 0 where one of the two
    does not vary. still: narrow channels that do not. numbers: of each that were compared.
    """

    axis: int
    width: int
    index: NDArray[np.intp]
    likeness: NDArray[np.float64]
    still: NDArray[np.bool_]
    numbers: int

    @property
    def mean(self) -> float:
        """Mean likeness of channels that vary; 0 where none does."""
        return float(self.likeness[~self.still].mean()) if not self.still.all() else 0.0

    @property
    def chance(self) -> float:
        """The largest correlation to be expected of noise."""
        return math.sqrt(2 * math.log(max(self.width, 2)) / self.numbers)

    @property
    def holds(self) -> bool:
        """Whether the narrow tensor is a part of the wide one, so far as its numbers tell."""
        return self.mean >= max(_ALIKE, _CHANCE * self.chance)

    @property
    def left_out(self) -> NDArray[np.bool_]:
        """Narrow channels that are like none."""
        return self.likeness < _EACH

    def of(self, wide: Array) -> Array:
        """Those channels of a wide tensor in the order of the narrow one, NaN for `left_out`."""
        found = np.take(wide, self.index, self.axis)
        np.moveaxis(found, self.axis, 0)[self.left_out] = np.nan
        return found


class Narrower(NamedTuple):
    """How a shape differs from another one: along which axis, and the sizes of both there."""

    axis: int
    own: int
    wide: int


def narrower(own: tuple[int, ...], wide: tuple[int, ...]) -> Narrower | None:
    """How the first shape is smaller along one axis; None where it is not, or differs otherwise."""
    differing = [i for i, (a, b) in enumerate(zip(own, wide, strict=False)) if a != b]
    if len(own) != len(wide) or len(differing) != 1 or own[differing[0]] > wide[differing[0]]:
        return None
    (axis,) = differing
    return Narrower(axis, own[axis], wide[axis])


def matched_channels(pairs: Sequence[tuple[Array, Array]], axis: int) -> MatchedChannels:
    """Channels of most correlation in all, each of the wide tensor's at most once.

    pairs: narrow and wide tensors of the same inputs, whose shapes differ along `axis` alone.
    """
    from scipy.optimize import linear_sum_assignment

    x, y = (_by_channel([pair[i] for pair in pairs], axis) for i in (0, 1))
    count = x.shape[1]
    (x, still), (y, _) = _scaled(x), _scaled(y)
    alike = x @ y.T / count
    own, index = linear_sum_assignment(alike, maximize=True)
    return MatchedChannels(axis, len(y), index, alike[own, index], still, count)


def _by_channel(tensors: Sequence[Array], axis: int) -> Array:
    parts = [np.moveaxis(a, axis, 0).reshape(a.shape[axis], -1) for a in tensors]
    every = -(-sum(part.shape[1] for part in parts) // _MOST)
    found = np.concatenate(parts, axis=1)[:, ::every].astype(np.float64)
    return np.where(np.isfinite(found), found, 0.0)


def _scaled(rows: Array) -> tuple[Array, NDArray[np.bool_]]:
    """Rows of mean 0 and variance 1, and those that do not vary, which are 0."""
    centred = rows - rows.mean(axis=1, keepdims=True)
    variance = np.square(centred).mean(axis=1)
    still = variance <= _STILL * np.square(rows).mean(axis=1)
    return centred / np.sqrt(np.where(still, np.inf, variance))[:, None], still
