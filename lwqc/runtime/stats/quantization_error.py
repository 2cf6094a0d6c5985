"""Squared error of candidate 8-bit grids, computed as the runtime would quantize."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.quant.activation import activation_grid
from lwqc.runtime.stats.collector import Array, Collector
from lwqc.runtime.stats.emitter import Emitter


@dataclass(frozen=True)
class ErrorSums:
    """errors: sum of squared errors of each candidate, float64 [candidates]."""

    errors: NDArray[np.float64]

    def __add__(self, other: ErrorSums) -> ErrorSums:
        """Sums of both."""
        return ErrorSums(self.errors + other.errors)


@dataclass(frozen=True)
class QuantizationError(Collector[ErrorSums]):
    """Error of quantizing one tensor to uint8 over each of `ranges` (low, high).

    Exact, and dear: a candidate costs four passes over the tensor. `ranges(method="mse")` needs
    one cast for all candidates; this collector checks a few.
    """

    tensor: str
    ranges: tuple[tuple[float, float], ...]

    @property
    def tensors(self) -> tuple[str, ...]:
        """The one tensor."""
        return (self.tensor,)

    def emit(self, emit: Emitter, values: Sequence[ir.Value]) -> Sequence[ir.Value]:
        """QuantizeLinear, DequantizeLinear, difference and sum per candidate."""
        x = emit.float32(values[0])
        return [self._error(emit, x, low, high) for low, high in self.ranges]

    def read(self, outputs: Sequence[Array]) -> ErrorSums:
        """Errors of one run."""
        return ErrorSums(np.array(outputs, np.float64))

    @staticmethod
    def _error(emit: Emitter, x: ir.Value, low: float, high: float) -> ir.Value:
        grid = activation_grid(low, high)
        scale = emit.constant(np.float32(grid.scale))
        zero = emit.constant(np.uint8(grid.zero))
        coded = emit("QuantizeLinear", x, scale, zero)
        decoded = emit("DequantizeLinear", coded, scale, zero)
        return emit.reduce("ReduceSumSquare", emit("Sub", x, decoded))
