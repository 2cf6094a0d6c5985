"""Which channels of a wide tensor those of a narrow one are: by correlation on the same inputs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class MatchedChannels:
    """Channels of the wide tensor. axis: along which they are; index, likeness: of each narrow one.

    likeness: Pearson's correlation, 0 where one of the two does not vary.
    """

    axis: int
    index: NDArray[np.intp]
    likeness: NDArray[np.float64]

    def of(self, wide: Array) -> Array:
        """Those channels of a wide tensor, in the order of the narrow one."""
        return np.take(wide, self.index, self.axis)


def narrower_axis(narrow: tuple[int, ...], wide: tuple[int, ...]) -> int | None:
    """The only axis along which shapes differ, where the first one is smaller there."""
    differing = [i for i, (a, b) in enumerate(zip(narrow, wide, strict=False)) if a != b]
    alone = len(narrow) == len(wide) and len(differing) == 1
    return differing[0] if alone and narrow[differing[0]] < wide[differing[0]] else None


def matched_channels(pairs: Iterable[tuple[Array, Array]], axis: int) -> MatchedChannels:
    """Channels of most correlation in all, each of the wide tensor's at most once.

    pairs: narrow and wide tensors of the same inputs, whose shapes differ along `axis` alone.
    """
    from scipy.optimize import linear_sum_assignment

    count, sums = 0, (np.float64(0),) * 5
    for narrow, wide in pairs:
        x, y = (np.moveaxis(a, axis, 0).reshape(a.shape[axis], -1) for a in (narrow, wide))
        x, y = x.astype(np.float64), y.astype(np.float64)
        count += x.shape[1]
        found = (x.sum(1), y.sum(1), np.square(x).sum(1), np.square(y).sum(1), x @ y.T)
        sums = tuple(old + new for old, new in zip(sums, found, strict=True))
    x, y, xx, yy, xy = (np.asarray(s) / count for s in sums)
    size = np.sqrt(np.outer(xx - x * x, yy - y * y).clip(0))
    alike = np.divide(xy - np.outer(x, y), size, out=np.zeros_like(xy), where=size > 0)
    own, index = linear_sum_assignment(np.nan_to_num(alike), maximize=True)
    return MatchedChannels(axis, index, np.nan_to_num(alike)[own, index])
