"""Gram matrix of a layer's input: the Hessian of its squared output error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.stats.collector import Array, Collector
from lwqc.stats.emitter import Emitter


@dataclass(frozen=True)
class GramSum:
    """matrix: sum over rows x of x xᵀ [features, features]; rows: how many there were."""

    rows: int
    matrix: NDArray[np.float64]

    def __add__(self, other: GramSum) -> GramSum:
        """Sums of both."""
        return GramSum(self.rows + other.rows, self.matrix + other.matrix)


@dataclass(frozen=True)
class Gram(Collector[GramSum]):
    """XᵀX of a tensor [..., features], as MatMul and Gemm read it; other axes are rows."""

    tensor: str

    @property
    def tensors(self) -> tuple[str, ...]:
        """The one tensor."""
        return (self.tensor,)

    def emit(self, emit: Emitter, values: Sequence[ir.Value]) -> Sequence[ir.Value]:
        """One Gemm over the rows; a convolution's rows would be its patches (im2col)."""
        rows = emit("Flatten", emit.float32(values[0]), axis=-1)
        return [emit("Shape", rows), emit("Gemm", rows, rows, transA=1)]

    def read(self, outputs: Sequence[Array]) -> GramSum:
        """Sum of one run."""
        shape, matrix = outputs
        return GramSum(int(shape[0]), matrix.astype(np.float64))

    def fold(self, total: GramSum, outputs: Sequence[Array]) -> GramSum:
        """Adds in place: the matrix may be large."""
        np.add(total.matrix, outputs[1], out=total.matrix)
        return GramSum(total.rows + int(outputs[0][0]), total.matrix)
