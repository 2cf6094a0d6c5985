"""Shapes that a tensor takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from lwqc.errors import InputError
from lwqc.runtime.stats.collector import Array, Collector
from lwqc.runtime.stats.emitter import Emitter


@dataclass(frozen=True)
class ShapesSeen:
    """largest: each dimension's largest size; last: the shape of the latest run."""

    largest: tuple[int, ...]
    last: tuple[int, ...]

    def __add__(self, other: ShapesSeen) -> ShapesSeen:
        """Shapes of both, `other` being later. Raises InputError when ranks differ."""
        if len(self.last) != len(other.last):
            raise InputError(f"a tensor changes rank: shapes {self.last} and {other.last}")
        pairs = zip(self.largest, other.largest, strict=True)
        return ShapesSeen(tuple(max(p) for p in pairs), other.last)


@dataclass(frozen=True)
class Shapes(Collector[ShapesSeen]):
    """Largest and last shape of one tensor."""

    tensor: str

    @property
    def tensors(self) -> tuple[str, ...]:
        """The one tensor."""
        return (self.tensor,)

    def emit(self, emit: Emitter, values: Sequence[ir.Value]) -> Sequence[ir.Value]:
        """One Shape node, of sizes that are not declared: the runtime would take those for it."""
        value = values[0]
        if value.shape is not None and value.producer() is not None:
            value.shape = ir.Shape([None] * value.shape.rank())
        return [emit("Shape", value)]

    def read(self, outputs: Sequence[Array]) -> ShapesSeen:
        """Shape of one run."""
        shape = tuple(int(d) for d in outputs[0])
        return ShapesSeen(shape, shape)
