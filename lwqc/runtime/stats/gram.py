"""Gram matrix of a layer's input: the Hessian of its squared output error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.runtime.stats.collector import Array, Collector
from lwqc.runtime.stats.emitter import Emitter
from lwqc.runtime.stats.patches import Window, feature_rows

_BAND = 256  # rows of a sum that are computed at once
WIDE = 1024  # features; onnxruntime 1.31 takes twice numpy's time for such products of rows


class RowWeights(Protocol):
    """Weights of rows, computed from other tensors of the same run; hashable, as collectors are."""

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of the tensors that they are computed from."""
        ...

    def emit(self, emit: Emitter, values: Sequence[ir.Value], /) -> ir.Value:
        """Append nodes over `values`, one per name; the result is [rows]."""
        ...


@dataclass(frozen=True)
class GramSum:
    """Sum over rows x of x xᵀ, or of r x xᵀ with weights r; rows: how many there were.

    sums: [features, features], with a window [groups, features, features]. half: what is below its
    diagonal does not count.
    """

    rows: int
    sums: NDArray[np.float64]
    half: bool = False

    @cached_property
    def matrix(self) -> NDArray[np.float64]:
        """All of it; what was missing is filled in, in place."""
        for start in range(0, len(self.sums), _BAND) if self.half else ():
            band = slice(start, start + _BAND)
            square = self.sums[band, band]
            square[:] = np.triu(square) + np.triu(square, 1).T
            self.sums[start + _BAND :, band] = self.sums[band, start + _BAND :].T
        return self.sums

    def __add__(self, other: GramSum) -> GramSum:
        """Sums of both."""
        return GramSum(self.rows + other.rows, self.matrix + other.matrix)


@dataclass(frozen=True)
class Gram(Collector[GramSum]):
    """XᵀX of a tensor [..., features], as MatMul and Gemm read it; other axes are rows.

    With a window, of the patches [channels, *kernel] that a convolution reads, group by group.
    weights: of the rows; a Gram matrix of patches takes none (ValueError). features: how many,
    where that is known; from 1024 on the rows leave the runtime and numpy multiplies them, band by
    band of one half: half the work, and no matrix of each run. also: other tensors whose rows count
    too, as where one weight is read several times; without weights (ValueError).
    """

    tensor: str
    window: Window | None = None
    weights: RowWeights | None = None
    features: int = 0
    also: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse weighted patches, and weights for rows of several tensors."""
        if self.window is not None and self.weights is not None:
            raise ValueError(f"{self.tensor}: patches of a convolution cannot be weighted")
        if self.also and self.weights is not None:
            raise ValueError(f"{self.tensor}: rows of several tensors cannot be weighted")

    @property
    def tensors(self) -> tuple[str, ...]:
        """Those with rows, then those of the weights."""
        weights = self.weights.tensors if self.weights is not None else ()
        return (self.tensor, *self.also, *weights)

    def emit(self, emit: Emitter, values: Sequence[ir.Value]) -> Sequence[ir.Value]:
        """One Gemm over the rows, or one MatMul per convolution group over the patches."""
        if self.window is None:
            parts = [emit.rows(v) for v in values[: 1 + len(self.also)]]
            rows = emit("Concat", *parts, axis=0) if self.also else parts[0]
            if self.outside:
                return [rows]
            weighted = self._weighted(emit, rows, values)
            return [emit("Shape", rows), emit.product(weighted, rows)]
        every = [feature_rows(emit, v, self.window) for v in values]
        patches = emit("Concat", *every, axis=2) if self.also else every[0]
        transposed = emit("Transpose", patches, perm=[0, 2, 1])
        return [emit("Shape", transposed), emit("MatMul", patches, transposed)]

    def _weighted(self, emit: Emitter, rows: ir.Value, values: Sequence[ir.Value]) -> ir.Value:
        if self.weights is None:
            return rows
        weights = self.weights.emit(emit, values[1:])
        return emit("Mul", rows, emit("Reshape", weights, emit.constant(np.array([-1, 1]))))

    @property
    def outside(self) -> bool:
        """Whether numpy multiplies the rows."""
        return self.features >= WIDE and self.window is None and self.weights is None

    def read(self, outputs: Sequence[Array]) -> GramSum:
        """Sum of one run."""
        if self.outside:
            size = outputs[0].shape[1]
            return self.fold(GramSum(0, np.zeros((size, size)), half=True), outputs)
        shape, matrix = outputs
        return GramSum(int(shape[-2]), matrix.astype(np.float64))

    def fold(self, total: GramSum, outputs: Sequence[Array]) -> GramSum:
        """Adds in place: the matrix may be large."""
        if self.outside:
            rows = outputs[0]
            product = np.empty(_BAND * rows.shape[1], rows.dtype)  # memory that is new costs time
            for start in range(0, rows.shape[1], _BAND):
                part = total.sums[start : start + _BAND, start:]
                made = product[: part.size].reshape(part.shape)
                np.matmul(rows[:, start : start + _BAND].T, rows[:, start:], out=made)
                np.add(part, made, out=part)
            return replace(total, rows=total.rows + len(rows), half=True)
        np.add(total.sums, outputs[1], out=total.sums)
        return replace(total, rows=total.rows + int(outputs[0][-2]))
