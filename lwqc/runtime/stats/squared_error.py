"""Range with the least squared error of 8-bit rounding and clipping, read off a histogram.

The error of a range is modelled from prefix sums, so a candidate costs four look-ups: what lies
outside is clipped (exact), what rounds to zero is lost (exact, as zero is on the grid), and the
rest is spread evenly over a step (variance step^2 / 12).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lwqc.runtime.stats.histogram import HalfCounts

Float = NDArray[np.float64]

# Candidates from the observed extreme down to 0.3 % of it.
_SHRINK: Float = np.float64(0.93) ** np.arange(80, dtype=np.float64)
_REFINED = 9  # candidates per side between the neighbours of the best one


def squared_error_limits(histogram: HalfCounts, symmetric: bool = False) -> tuple[float, float]:
    """(low, high) around 0 of least squared error: 255 steps, or 254 with low = -high."""
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    if low == high:
        return 0.0, 0.0
    if symmetric:
        low, high = -max(-low, high), max(-low, high)
    lows, highs = (side * _SHRINK if side else np.zeros(1) for side in (low, high))
    error = _ErrorModel(histogram, symmetric)
    i, j = error.best(lows, highs)
    lows, highs = _around(lows, i), _around(highs, j)
    i, j = error.best(lows, highs)
    return float(lows[i]), float(highs[j])


def _around(candidates: Float, i: int) -> Float:
    """Candidates between the neighbours of the i-th, widest first."""
    last = len(candidates) - 1
    return np.linspace(candidates[max(i - 1, 0)], candidates[min(i + 1, last)], _REFINED)


class _ErrorModel:
    """Squared error of ranges, from prefix sums of count, value and square over the codes."""

    def __init__(self, histogram: HalfCounts, symmetric: bool) -> None:
        counts, self._values = histogram.ascending.astype(np.float64), histogram.values
        powers = (counts, counts * self._values, counts * self._values**2)
        self._sums = [np.r_[0.0, np.cumsum(p)] for p in powers]
        self._symmetric = symmetric

    def best(self, lows: Float, highs: Float) -> tuple[int, int]:
        """Positions of the best pair; symmetric ranges pair equal positions."""
        if self._symmetric:
            i = int(np.argmin(self(lows, highs, 254)))
            return i, i
        errors = self(lows[:, None], highs[None, :], 255)
        return divmod(int(np.argmin(errors)), highs.size)

    def __call__(self, low: Float, high: Float, steps: int) -> Float:
        """Error of each range; the arguments broadcast."""
        step = (high - low) / steps
        below, lost_from = self._upto(low), self._upto(np.maximum(-step / 2, low))
        lost_to, above = self._upto(np.minimum(step / 2, high)), self._upto(high)
        n, s, q = self._sums
        clipped_low = q[below] - 2 * low * s[below] + low**2 * n[below]
        clipped_high = (
            q[-1] - q[above] - 2 * high * (s[-1] - s[above]) + high**2 * (n[-1] - n[above])
        )
        lost = q[lost_to] - q[lost_from]
        rounded = (n[above] - n[below] - (n[lost_to] - n[lost_from])) * step**2 / 12
        error: Float = clipped_low + clipped_high + lost + rounded
        return error

    def _upto(self, limit: Float) -> NDArray[np.intp]:
        """How many codes lie below `limit`."""
        return np.searchsorted(self._values, limit)
