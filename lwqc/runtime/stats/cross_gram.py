"""What a least-squares refit needs to know of a layer's input before and after pruning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.runtime.stats.collector import Array, Collector
from lwqc.runtime.stats.emitter import Emitter
from lwqc.runtime.stats.patches import Window, feature_rows

Sums = NDArray[np.float64]


@dataclass(frozen=True)
class CrossSums:
    """Sums over rows x of the left tensor and y of the right one, for each of g groups.

    left: sum of x [g, k]; right: sum of y [g, m]; cross: sum of x yᵀ [g, k, m];
    gram: sum of y yᵀ [g, m, m]. Both matrices are [g, 0, 0] when only means were asked for.
    A run is summed in float32 and runs are added in float64.
    """

    rows: int
    left: Sums
    right: Sums
    cross: Sums
    gram: Sums

    def __add__(self, other: CrossSums) -> CrossSums:
        """Sums of both."""
        return CrossSums(
            self.rows + other.rows,
            self.left + other.left,
            self.right + other.right,
            self.cross + other.cross,
            self.gram + other.gram,
        )


@dataclass(frozen=True)
class CrossGram(Collector[CrossSums]):
    """Joint second moments of the inputs X (`left`) and Y (`right`) of a layer and its pruned self.

    Row i of both must belong together. Windows are those of the convolution before and after;
    without, the tensors are [..., features]. kept_groups: convolution groups of `left` that
    `right` still has, in order; None when all. means_only: leave the matrices out.
    """

    left: str
    right: str
    left_window: Window | None = None
    right_window: Window | None = None
    kept_groups: tuple[int, ...] | None = None
    means_only: bool = False

    @property
    def tensors(self) -> tuple[str, ...]:
        """Both tensors."""
        return (self.left, self.right)

    def emit(self, emit: Emitter, values: Sequence[ir.Value]) -> Sequence[ir.Value]:
        """Both tensors as [groups, features, rows], their sums over rows and two products."""
        left = feature_rows(emit, values[0], self.left_window)
        if self.kept_groups is not None:
            left = emit("Gather", left, emit.constant(np.asarray(self.kept_groups)), axis=0)
        right = feature_rows(emit, values[1], self.right_window)
        sums = [emit("Shape", right), *(emit.reduce("ReduceSum", v, [2]) for v in (left, right))]
        if self.means_only:
            return sums
        rows_first = emit("Transpose", right, perm=[0, 2, 1])
        return [*sums, emit("MatMul", left, rows_first), emit("MatMul", right, rows_first)]

    def read(self, outputs: Sequence[Array]) -> CrossSums:
        """Sums of one run."""
        shape, *sums = outputs
        empty = np.zeros((shape[0], 0, 0)) if self.means_only else None
        matrices = (empty, empty) if empty is not None else sums[2:]
        arrays = (*sums[:2], *matrices)
        return CrossSums(int(shape[2]), *(np.asarray(a, np.float64) for a in arrays))

    def fold(self, total: CrossSums, outputs: Sequence[Array]) -> CrossSums:
        """Adds in place: the matrices may be large."""
        shape, *sums = outputs
        parts = (total.left, total.right, total.cross, total.gram)
        for part, added in zip(parts, sums, strict=False):
            np.add(part, added, out=part)
        return CrossSums(total.rows + int(shape[2]), *parts)
