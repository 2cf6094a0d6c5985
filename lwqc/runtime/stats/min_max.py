"""Smallest and largest value of a tensor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from lwqc.runtime.stats.collector import Array, Collector, scalar
from lwqc.runtime.stats.emitter import Emitter


@dataclass(frozen=True)
class Extent:
    """Exact extremes; (inf, -inf) when every sample was empty. finite: no NaN or infinity seen."""

    low: float
    high: float
    finite: bool = True

    def __add__(self, other: Extent) -> Extent:
        """The extent of both."""
        low, high = min(self.low, other.low), max(self.high, other.high)
        return Extent(low, high, self.finite and other.finite)


@dataclass(frozen=True)
class MinMax(Collector[Extent]):
    """Extremes of one tensor over all elements and runs."""

    tensor: str

    @property
    def tensors(self) -> tuple[str, ...]:
        """The one tensor."""
        return (self.tensor,)

    def emit(self, emit: Emitter, values: Sequence[ir.Value]) -> Sequence[ir.Value]:
        """Three scalars; the sum is there because ReduceMin and ReduceMax lose a NaN."""
        x = emit.float32(values[0])
        return [emit.reduce(op, x) for op in ("ReduceMin", "ReduceMax", "ReduceSum")]

    def read(self, outputs: Sequence[Array]) -> Extent:
        """Extent of one run."""
        low, high, total = (scalar(o) for o in outputs)
        empty = low > high
        # The sum of large finite values may overflow to infinity, never to NaN.
        return Extent(low, high, empty or (_finite(low, high) and not math.isnan(total)))


def _finite(low: float, high: float) -> bool:
    return math.isfinite(low) and math.isfinite(high)
