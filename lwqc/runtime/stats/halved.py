"""A statistic of every other run, and one of those between: to judge a fit on what it never saw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import onnx_ir as ir

from lwqc.runtime.stats.collector import Array, Collector, Statistic
from lwqc.runtime.stats.emitter import Emitter

S = TypeVar("S", bound=Statistic)


@dataclass(frozen=True)
class Halves(Generic[S]):
    """first: of runs 1, 3, 5 and so on; second: of the others, None where there was one run."""

    first: S
    second: S | None
    runs: int

    @property
    def whole(self) -> S:
        """Of all runs."""
        return self.first if self.second is None else self.first + self.second

    def __add__(self, other: Halves[S]) -> Halves[S]:
        """Of the runs of both, this one's first."""
        first, second = (other.first, other.second)[:: 1 if self.runs % 2 == 0 else -1]
        parts = ((self.first, first), (self.second, second))
        added = [a if b is None else b if a is None else a + b for a, b in parts]
        assert added[0] is not None
        return Halves(added[0], added[1], self.runs + other.runs)


@dataclass(frozen=True)
class Halved(Collector[Halves[S]]):
    """What another collector gives, by halves of the runs; both together take twice its memory."""

    inner: Collector[S]

    @property
    def tensors(self) -> tuple[str, ...]:
        """Those of the other."""
        return self.inner.tensors

    def emit(self, emit: Emitter, values: Sequence[ir.Value]) -> Sequence[ir.Value]:
        """As the other."""
        return self.inner.emit(emit, values)

    def read(self, outputs: Sequence[Array]) -> Halves[S]:
        """Of one run."""
        return Halves(self.inner.read(outputs), None, 1)

    def fold(self, total: Halves[S], outputs: Sequence[Array]) -> Halves[S]:
        """Adds to the half whose turn it is, as the other does."""
        first, second = total.first, total.second
        if total.runs % 2 == 0:
            first = self.inner.fold(first, outputs)
        elif second is None:
            second = self.inner.read(outputs)
        else:
            second = self.inner.fold(second, outputs)
        return Halves(first, second, total.runs + 1)
