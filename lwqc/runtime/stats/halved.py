"""A statistic by halves of the runs: to judge a fit to one half on the other."""

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
    """Of both halves; second: None where there was one run.

    Runs go to them by the Thue-Morse sequence (0 1 1 0 1 0 0 1 ...), in which no turn of kinds of
    data becomes a half of its own.
    """

    first: S
    second: S | None
    runs: int

    @property
    def whole(self) -> S:
        """Of all runs."""
        return self.first if self.second is None else self.first + self.second

    def __add__(self, other: Halves[S]) -> Halves[S]:
        """Half by half."""
        second = self.second
        if second is None:
            second = other.second
        elif other.second is not None:
            second = second + other.second
        return Halves(self.first + other.first, second, self.runs + other.runs)


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
        if total.runs.bit_count() % 2 == 0:
            first = self.inner.fold(first, outputs)
        elif second is None:
            second = self.inner.read(outputs)
        else:
            second = self.inner.fold(second, outputs)
        return Halves(first, second, total.runs + 1)
