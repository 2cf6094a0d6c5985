"""Cosine between two tensors, token by token: how much a layer changes its input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from lwqc.errors import InputError
from lwqc.stats.collector import Array, Collector, scalar
from lwqc.stats.emitter import Emitter

_TINY = 1e-30  # a zero vector has cosine 0 with everything


@dataclass(frozen=True)
class CosineSum:
    """count: vectors compared; total: sum of their cosines."""

    count: int
    total: float

    def __add__(self, other: CosineSum) -> CosineSum:
        """Sums of both."""
        return CosineSum(self.count + other.count, self.total + other.total)

    @property
    def mean(self) -> float:
        """Mean cosine; 0 when nothing was compared."""
        return self.total / max(self.count, 1)

    @property
    def lim(self) -> float:
        """Layer input modification score, -cos(in, out): higher is more important.

        Source: Layer-Wise Quantization, arXiv 2406.17415.
        """
        return -self.mean


@dataclass(frozen=True)
class TokenCosine(Collector[CosineSum]):
    """Mean over vectors of cos(a, b); both tensors have the same shape.

    axis: the features of a vector, -1 in transformers, 1 in convolutional networks; None takes a
    whole sample (everything but axis 0) as one vector.

    Raises InputError when the model says that the shapes differ.
    """

    a: str
    b: str
    axis: int | None = -1

    @property
    def tensors(self) -> tuple[str, ...]:
        """Both tensors."""
        return (self.a, self.b)

    def emit(self, emit: Emitter, values: Sequence[ir.Value]) -> Sequence[ir.Value]:
        """Number of vectors and sum of cosines."""
        self._check(*values)
        a, b = (emit.float32(v) for v in values)
        if self.axis is None:
            a, b = (emit("Flatten", v, axis=1) for v in (a, b))
        axes = [1 if self.axis is None else self.axis]
        dot = emit.reduce("ReduceSum", emit("Mul", a, b), axes)
        norms = emit("Mul", *(emit.reduce("ReduceL2", v, axes) for v in (a, b)))
        cosine = emit("Div", dot, emit("Max", norms, emit.constant(np.float32(_TINY))))
        return [emit("Size", cosine), emit.reduce("ReduceSum", cosine)]

    def read(self, outputs: Sequence[Array]) -> CosineSum:
        """Sum of one run."""
        return CosineSum(int(outputs[0]), scalar(outputs[1]))

    def _check(self, a: ir.Value, b: ir.Value) -> None:
        if a.shape is None or b.shape is None:
            return
        known = [
            (x, y)
            for x, y in zip(a.shape, b.shape, strict=False)
            if isinstance(x, int) and isinstance(y, int)
        ]
        if a.shape.rank() != b.shape.rank() or any(x != y for x, y in known):
            raise InputError(
                f"{self.a} {a.shape} and {self.b} {b.shape}: a cosine needs equal shapes"
            )
