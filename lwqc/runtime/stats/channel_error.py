"""Error of one output, channel by channel, in units of what each channel itself varies by.

A cosine or an energy over a whole output is that of its largest numbers: boxes of 0 to 320 hide
class scores of 0 to 1. Here every channel counts alike, whatever its scale.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
_ENOUGH = 16  # values of a channel from which its own spread can be told
_LEAST_SPREAD = 1e-2  # of a channel's root mean square: it counts as varying by that at least
_DEAD = 1e-30  # standard deviation of channels that training let die, which are as good as zeros
_SUM = 1e-3  # by which probabilities of one distribution may miss 1
# As uneven in scale as that, as a factor and beyond: then an axis is the channels' though unusual.
_CLEARLY, _BEYOND = 1.5, 0.1


def channel_axis(array: Array) -> int | None:
    """The axis whose entries differ most in scale; None below two axes.

    One over which probabilities add up to 1 goes first. Candidates are the last axis and axis 1,
    where channels are in ONNX; between them the usual one wins unless the other is clearly more
    uneven: axis 1 of four and more axes, else the last.
    """
    if array.ndim < 2:
        return None
    usual = 1 if array.ndim > 3 else array.ndim - 1
    other = array.ndim - 1 if usual == 1 else 1
    if array.ndim > 3 and array.shape[usual] == 1:
        return usual  # maps of one channel, whose columns are none
    axes = [axis for axis in dict.fromkeys((usual, other)) if array.shape[axis] > 1]
    distributions = [axis for axis in axes if is_distribution(array, axis)]
    if distributions or len(axes) < 2:
        return next(iter(distributions or axes), usual)
    uneven = [_unevenness(array, axis) for axis in axes]
    return axes[1] if uneven[1] > _CLEARLY * uneven[0] + _BEYOND else axes[0]


def is_distribution(array: Array, axis: int) -> bool:
    """Whether the values are probabilities that add up to 1 along an axis."""
    if not array.size or array.shape[axis] < 2 or not (array.min() >= 0 and array.max() <= 1):
        return False
    return bool(np.abs(array.sum(axis, dtype=np.float64) - 1).max() <= _SUM)


def _unevenness(array: Array, axis: int) -> float:
    """Standard deviation over the entries of an axis of the logarithm of their scale.

    Less what so few values would show by chance: 1 / 2n in its square.
    """
    rest = tuple(a for a in range(array.ndim) if a != axis)
    with np.errstate(over="ignore", invalid="ignore"):
        spread = array.std(rest, dtype=np.float64)
    top = spread.max(initial=0.0)
    if not np.isfinite(top) or top == 0:
        return 0.0
    chance = array.shape[axis] / (2 * array.size)
    return math.sqrt(max(float(np.log(np.maximum(spread, 1e-9 * top)).var()) - chance, 0.0))


@dataclass(frozen=True)
class ChannelErrors:
    """Squared error of each channel over its variance in the reference.

    axis: of the channels; None where the output is one channel. errors: [channels].
    """

    axis: int | None
    errors: Array

    @property
    def relative(self) -> float:
        """Root mean square over the channels: one channel that is lost shows among thousands."""
        if not self.errors.size:
            return 0.0
        largest = float(self.errors.max())
        if not math.isfinite(largest) or largest == 0:
            return largest
        return largest * math.sqrt(float(np.mean((self.errors / largest) ** 2)))

    @property
    def worst(self) -> int:
        """The channel that moved most."""
        return int(self.errors.argmax()) if self.errors.size else 0


@dataclass
class _Sums:
    """Sums over the values of each channel: count, reference, its square, squared error."""

    count: int
    total: Array
    square: Array
    error: Array

    def errors(self, together: bool) -> Array:
        """Squared error over variance, by channel; of all channels `together` as one."""
        variance, error = self._moments(together)
        found = error / variance
        return np.where(np.isnan(found), np.inf, found)

    def variance(self, together: bool) -> Array:
        """What errors are measured by, for each channel."""
        return np.broadcast_to(self._moments(together)[0], self.total.shape)

    def _moments(self, together: bool) -> tuple[Array, Array]:
        """Variance of the reference and mean squared error, of each channel or of all as one."""
        if together or self.count < _ENOUGH:
            count = self.count * max(len(self.total), 1)
            pooled = [np.atleast_1d(a.sum()) for a in (self.total, self.square, self.error)]
        else:
            count, pooled = self.count, [self.total, self.square, self.error]
        total, square, error = (a / max(count, 1) for a in pooled)
        least = _LEAST_SPREAD**2 * square
        variance = np.maximum(square - total**2, least)
        empty = variance <= _DEAD**2  # a channel of zeros is measured by its neighbours
        return np.where(empty, max(float(variance.mean()), 1e-300), variance), error


@dataclass
class ChannelMeter:
    """Accumulates the errors of one output, batch by batch; the first batch decides the axis."""

    axis: int | None = None
    _distribution: bool = True
    _started: bool = False
    _by_width: dict[int, _Sums] = field(default_factory=dict)

    def add(self, reference: Array, value: Array) -> None:
        """Add one batch of floats of equal shape; what is not finite in both alike is left out."""
        if not self._started:
            self.axis, self._started = channel_axis(reference), True
        axis = self.axis
        width = 1 if axis is None else reference.shape[axis]
        if axis is None or not is_distribution(reference, axis):
            self._distribution = False
        rest = tuple(a for a in range(reference.ndim) if a != axis)
        a, b = reference.astype(np.float64), value.astype(np.float64)
        with np.errstate(invalid="ignore", over="ignore"):
            error = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, (a - b) ** 2)
        a = np.where(np.isfinite(a), a, 0.0)
        found = [np.atleast_1d(x.sum(rest)) for x in (a, a * a, error)]
        sums = self._by_width.setdefault(width, _Sums(0, *(np.zeros(width) for _ in range(3))))
        sums.count += reference.size // max(width, 1)
        sums.total, sums.square, sums.error = (
            old + new for old, new in zip((sums.total, sums.square, sums.error), found, strict=True)
        )

    def result(self) -> ChannelErrors:
        """Errors over everything added so far."""
        together = self._distribution or self.axis is None
        found = [sums.errors(together) for sums in self._by_width.values()]
        return ChannelErrors(self.axis, np.concatenate(found) if found else np.zeros(0))

    def variances(self) -> tuple[int | None, Array]:
        """The channel axis, and what the error of each channel is measured by.

        One number for all where they are one distribution, or their number differs by batch.
        """
        together = self._distribution or self.axis is None
        found = [sums.variance(together) for sums in self._by_width.values()]
        if len(found) == 1:
            return self.axis, found[0]
        return None, np.atleast_1d(np.mean([f.mean() for f in found])) if found else np.ones(1)
