"""How often each row of a table is taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.runtime.stats.collector import Array, Collector
from lwqc.runtime.stats.emitter import Emitter


@dataclass(frozen=True, eq=False)
class Counts:
    """times: of each id, [size]."""

    times: NDArray[np.int64]

    def __add__(self, other: Counts) -> Counts:
        """The counts of both."""
        return Counts(self.times + other.times)


@dataclass(frozen=True)
class IdCounts(Collector[Counts]):
    """Of a tensor of whole numbers from -size to size - 1, as Gather takes them."""

    tensor: str
    size: int

    @property
    def tensors(self) -> tuple[str, ...]:
        """The one tensor."""
        return (self.tensor,)

    def emit(self, emit: Emitter, values: Sequence[ir.Value]) -> Sequence[ir.Value]:
        """The ids, of any shape, in a row: there are few beside all that is computed of them."""
        return [emit("Reshape", values[0], emit.constant(np.array([-1])))]

    def read(self, outputs: Sequence[Array]) -> Counts:
        """Counts of one run."""
        ids = np.asarray(outputs[0], np.int64) % self.size
        return Counts(np.bincount(ids, minlength=self.size).astype(np.int64))
