"""Squared difference of two tensors and the size of the first: how wrong one copy is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from lwqc.runtime.stats.collector import Array, Collector, scalar
from lwqc.runtime.stats.emitter import Emitter

# Masks hold -inf or the smallest float, whose squares overflow; nothing else is as large.
_LARGEST = 1e15


@dataclass(frozen=True)
class ErrorSum:
    """error: sum of (a - b)^2, inf when b is NaN; signal: sum of a^2."""

    error: float
    signal: float

    def __add__(self, other: ErrorSum) -> ErrorSum:
        """Sums of both."""
        return ErrorSum(self.error + other.error, self.signal + other.signal)

    @property
    def relative(self) -> float:
        """Root mean square of the error over that of the reference."""
        if self.error == 0:
            return 0.0
        return math.sqrt(self.error / self.signal) if self.signal > 0 else math.inf


@dataclass(frozen=True)
class RelativeError(Collector[ErrorSum]):
    """How far `value` is from `reference`, of the same shape; magnitudes stop at 1e15."""

    reference: str
    value: str

    @property
    def tensors(self) -> tuple[str, ...]:
        """Both tensors."""
        return (self.reference, self.value)

    def emit(self, emit: Emitter, values: Sequence[ir.Value]) -> Sequence[ir.Value]:
        """Clip, subtract, two sums of squares."""
        low, high = (emit.constant(np.float32(v)) for v in (-_LARGEST, _LARGEST))
        a, b = (emit("Max", emit("Min", emit.float32(v), high), low) for v in values)
        return [emit.reduce("ReduceSumSquare", v) for v in (emit("Sub", a, b), a)]

    def read(self, outputs: Sequence[Array]) -> ErrorSum:
        """Sums of one run."""
        error, signal = (scalar(o) for o in outputs)
        return ErrorSum(math.inf if math.isnan(error) else error, signal)
