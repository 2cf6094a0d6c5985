"""Gram matrix of a layer's input: the Hessian of its squared output error."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
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
    band of one half: half the work, and no matrix of each run. also: of other tensors with as many
    features, whose rows count too, as where one weight is read several times; without weights
    (ValueError).
    """

    tensor: str
    window: Window | None = None
    weights: RowWeights | None = None
    features: int = 0
    also: tuple[Gram, ...] = ()

    def __post_init__(self) -> None:
        """Refuse weighted patches, and weights for rows of several tensors."""
        if self.window is not None and self.weights is not None:
            raise ValueError(f"{self.tensor}: patches of a convolution cannot be weighted")
        if self.also and any(g.weights is not None for g in (self, *self.also)):
            raise ValueError(f"{self.tensor}: rows of several tensors cannot be weighted")

    @staticmethod
    def together(grams: Iterable[Gram]) -> Gram | None:
        """Of the rows of all of them, each once; None for none, and where they do not add up."""
        ordered = sorted(set(grams), key=lambda g: (g.tensor, repr(g.window)))
        if len({g._kind for g in ordered}) != 1:
            return None
        return replace(ordered[0], also=tuple(ordered[1:]))

    @property
    def _kind(self) -> tuple[int, ...]:
        """Alike for matrices that add up: whether of patches, groups, features."""
        window = self.window
        return (0, 1, self.features) if window is None else (1, window.groups, window.features)

    @property
    def tensors(self) -> tuple[str, ...]:
        """Those with rows, then those of the weights."""
        weights = self.weights.tensors if self.weights is not None else ()
        return (self.tensor, *(g.tensor for g in self.also), *weights)

    def emit(self, emit: Emitter, values: Sequence[ir.Value]) -> Sequence[ir.Value]:
        """One Gemm over the rows, or one MatMul per convolution group over the patches.

        With other tensors the sum of their products, so that no run holds the rows of all at once.
        """
        if self.outside:
            return [emit.rows(v) for v in values]
        shapes, products = [], []
        for gram, value in zip((self, *self.also), values, strict=False):
            shape, product = gram._product(emit, value, values[1:])
            shapes.append(shape)
            products.append(product)
        total = products[0]
        for product in products[1:]:
            total = emit("Add", total, product)
        return [*shapes, total]

    def _product(
        self, emit: Emitter, value: ir.Value, weights: Sequence[ir.Value]
    ) -> tuple[ir.Value, ir.Value]:
        """Of its own tensor: a shape whose last but one is the number of rows, and the matrix."""
        if self.window is None:
            rows = emit.rows(value)
            return emit("Shape", rows), emit.product(self._weighted(emit, rows, weights), rows)
        patches = feature_rows(emit, value, self.window)
        transposed = emit("Transpose", patches, perm=[0, 2, 1])
        return emit("Shape", transposed), emit("MatMul", patches, transposed)

    def _weighted(self, emit: Emitter, rows: ir.Value, values: Sequence[ir.Value]) -> ir.Value:
        if self.weights is None:
            return rows
        weights = self.weights.emit(emit, values)
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
        *shapes, matrix = outputs
        return GramSum(_rows(shapes), matrix.astype(np.float64))

    def fold(self, total: GramSum, outputs: Sequence[Array]) -> GramSum:
        """Adds in place: the matrix may be large."""
        if self.outside:
            size = len(total.sums)
            product = np.empty(_BAND * size, outputs[0].dtype)  # memory that is new costs time
            for rows in _laid_together(outputs, size):
                for start in range(0, size, _BAND):
                    part = total.sums[start : start + _BAND, start:]
                    made = product[: part.size].reshape(part.shape)
                    np.matmul(rows[:, start : start + _BAND].T, rows[:, start:], out=made)
                    np.add(part, made, out=part)
            return replace(total, rows=total.rows + sum(map(len, outputs)), half=True)
        *shapes, matrix = outputs
        np.add(total.sums, matrix, out=total.sums)
        return replace(total, rows=total.rows + _rows(shapes))


def _rows(shapes: Sequence[Array]) -> int:
    return sum(int(shape[-2]) for shape in shapes)


def _laid_together(parts: Sequence[Array], size: int) -> Iterator[Array]:
    """Rows in pieces of about as many as features: adding a matrix costs as much for one row."""
    held: list[Array] = []
    for part in parts:
        held.append(part)
        if sum(map(len, held)) >= size:
            yield held[0] if len(held) == 1 else np.concatenate(held)
            held = []
    if held:
        yield held[0] if len(held) == 1 else np.concatenate(held)
