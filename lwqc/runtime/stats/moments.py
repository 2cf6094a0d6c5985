"""Count, sum, sum of squares and largest magnitude, per tensor or per channel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.errors import InputError
from lwqc.runtime.stats.collector import Array, Collector
from lwqc.runtime.stats.emitter import Emitter

Sums = NDArray[np.float64]


@dataclass(frozen=True)
class MomentSums:
    """Sums over all elements, or one per channel: `total`, `squares`, `absmax` are [] or [c].

    count: elements per entry. A run is summed in float32 and runs are added in float64.
    """

    count: int
    total: Sums
    squares: Sums
    absmax: Sums

    def __add__(self, other: MomentSums) -> MomentSums:
        """Sums of both."""
        return MomentSums(
            self.count + other.count,
            self.total + other.total,
            self.squares + other.squares,
            np.maximum(self.absmax, other.absmax),
        )

    @property
    def mean(self) -> Sums:
        """Mean, 0 when nothing was seen."""
        return self.total / max(self.count, 1)

    @property
    def variance(self) -> Sums:
        """Population variance."""
        return np.maximum(self.squares / max(self.count, 1) - self.mean**2, 0)


@dataclass(frozen=True)
class Moments(Collector[MomentSums]):
    """Moments of one tensor; with `axis`, of each index of that axis (negative from the end).

    Raises InputError for an axis that the tensor lacks, or when its rank is not in the model.
    """

    tensor: str
    axis: int | None = None

    @property
    def tensors(self) -> tuple[str, ...]:
        """The one tensor."""
        return (self.tensor,)

    def emit(self, emit: Emitter, values: Sequence[ir.Value]) -> Sequence[ir.Value]:
        """Element count, and three reductions over every axis but the chosen one."""
        x = emit.float32(values[0])
        axes = None if self.axis is None else self._others(values[0])
        reduced = [
            emit.reduce("ReduceSum", x, axes),
            emit.reduce("ReduceSumSquare", x, axes),
            emit.reduce("ReduceMax", emit("Abs", x), axes),
        ]
        return [emit("Size", x), *reduced]

    def read(self, outputs: Sequence[Array]) -> MomentSums:
        """Sums of one run."""
        size, total, squares, absmax = outputs
        count = int(size) // max(total.size, 1)
        return MomentSums(
            count,
            np.asarray(total, np.float64),
            np.asarray(squares, np.float64),
            np.maximum(np.asarray(absmax, np.float64), 0),  # -inf over no element
        )

    def _others(self, value: ir.Value) -> list[int]:
        axis = self.axis or 0
        if value.shape is None:
            raise InputError(
                f"{self.tensor}: its rank is unknown, so it has no axis {axis}; infer shapes first"
            )
        rank = value.shape.rank()
        if rank < 2 or not -rank <= axis < rank:
            raise InputError(f"{self.tensor}: has rank {rank}; no per-channel axis {axis}")
        return [i for i in range(rank) if i != axis % rank]
