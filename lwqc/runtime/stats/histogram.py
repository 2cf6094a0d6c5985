"""Histogram of a tensor without knowing its range: counts of values rounded to half precision.

A half has 65,536 codes, spaced by 2^-11 of the value or finer than 2^-24 near zero. So one pass
needs no range, histograms of different runs add up exactly, and any linear histogram follows with
bins of the top octave resolved to 1/1024 of it. The session rounds; counting the codes is left to
numpy, which takes 1.8 ns per element where ScatterElements takes 4.2 and a comparison per bin more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.runtime.stats.collector import Array, Collector
from lwqc.runtime.stats.emitter import Emitter

Float = NDArray[np.float64]

_CODES = 1 << 16
_INF, _SIGN = 0x7C00, 0x8000
# Finite codes by ascending value; -0 is counted as +0.
_ASCENDING = np.r_[np.arange(_SIGN + _INF - 1, _SIGN, -1), np.arange(_INF)]
_VALUES: Float = _ASCENDING.astype(np.uint16).view(np.float16).astype(np.float64)


def _cells() -> Float:
    """Edges between the finite codes; the cell of zero starts at 0, so zeros count as positive."""
    middle = (_VALUES[1:] + _VALUES[:-1]) / 2
    edges: Float = np.concatenate([_VALUES[:1], middle, _VALUES[-1:]])
    edges[_INF - 1] = 0.0
    return edges


_EDGES: Float = _cells()


@dataclass(frozen=True, eq=False)
class HalfCounts:
    """counts[code]: how many values, divided by 2^exponent, round to that half, int64 [65536]."""

    counts: NDArray[np.int64]
    exponent: int = 0

    def __add__(self, other: HalfCounts) -> HalfCounts:
        """Counts of both; their exponents must agree."""
        if self.exponent != other.exponent:
            raise ValueError(f"exponents differ: {self.exponent} and {other.exponent}")
        return HalfCounts(self.counts + other.counts, self.exponent)

    @property
    def nans(self) -> int:
        """Values that are NaN."""
        return int(self.counts[_INF + 1 : _SIGN].sum() + self.counts[_SIGN + _INF + 1 :].sum())

    @property
    def overflows(self) -> int:
        """Values that are infinite, or above 65504 * 2^exponent."""
        return int(self.counts[_INF] + self.counts[_SIGN + _INF])

    @cached_property
    def ascending(self) -> NDArray[np.int64]:
        """Counts of the finite codes, lowest value first."""
        counts = self.counts[_ASCENDING]
        counts[_INF - 1] += self.counts[_SIGN]
        return counts

    @cached_property
    def cumulative(self) -> NDArray[np.int64]:
        """Counts below each edge of the cells, lowest first; one longer than `ascending`."""
        below = np.zeros(self.ascending.size + 1, np.int64)
        np.cumsum(self.ascending, out=below[1:])
        return below

    @property
    def values(self) -> Float:
        """Values of `ascending`."""
        return _VALUES * 2.0**self.exponent

    @property
    def low(self) -> float:
        """Smallest value to half precision; 0 when nothing was counted."""
        return self._extreme(0)

    @property
    def high(self) -> float:
        """Largest value to half precision; 0 when nothing was counted."""
        return self._extreme(-1)

    def linear(self, edges: Float) -> Float:
        """Counts between ascending `edges` [bins + 1] -> [bins]; what lies outside joins the ends.

        A code that straddles an edge is shared in proportion.
        """
        below = np.interp(edges, _EDGES * 2.0**self.exponent, self.cumulative)
        below[0], below[-1] = 0, self.cumulative[-1]
        return np.diff(below)

    def quantile(self, share: float) -> float:
        """The value below which `share` of the values lie, to half precision."""
        target = share * self.cumulative[-1]
        value = np.interp(target, self.cumulative, _EDGES * 2.0**self.exponent)
        return float(np.clip(value, self.low, self.high))

    def relu(self) -> HalfCounts:
        """The histogram of max(x, 0)."""
        counts = self.counts.copy()
        negative = slice(_SIGN, _SIGN + _INF + 1)
        counts[0] += counts[negative].sum()
        counts[negative] = 0
        return HalfCounts(counts, self.exponent)

    def _extreme(self, end: int) -> float:
        occupied = np.flatnonzero(self.ascending)
        return float(self.values[occupied[end]]) if occupied.size else 0.0


@dataclass(frozen=True)
class Histogram(Collector[HalfCounts]):
    """Counts of a tensor's values, scaled by 2^-exponent to fit half precision."""

    tensor: str
    exponent: int = 0

    @property
    def tensors(self) -> tuple[str, ...]:
        """The one tensor."""
        return (self.tensor,)

    def emit(self, emit: Emitter, values: Sequence[ir.Value]) -> Sequence[ir.Value]:
        """One Cast: the run returns the codes, half the size of the activation."""
        x = values[0]
        exponent = self.exponent
        while exponent:  # in steps, for 2^-exponent itself may not be a normal float32
            step = max(-100, min(100, exponent))
            x = emit("Mul", emit.float32(x), emit.constant(np.float32(2.0**-step)))
            exponent -= step
        return [emit("Cast", x, to=int(ir.DataType.FLOAT16))]

    def read(self, outputs: Sequence[Array]) -> HalfCounts:
        """Counts of one run."""
        return self.fold(HalfCounts(np.zeros(_CODES, np.int64), self.exponent), outputs)

    def fold(self, total: HalfCounts, outputs: Sequence[Array]) -> HalfCounts:
        """Counts in place; add.at needs no temporary of eight bytes per element, bincount does."""
        np.add.at(total.counts, outputs[0].reshape(-1).view(np.uint16), 1)
        return total
