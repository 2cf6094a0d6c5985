"""What a collector is: reduction nodes to append, and how their outputs add up over runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, Protocol, Self, TypeVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.runtime.stats.emitter import Emitter

Array = NDArray[Any]
Feeds = Mapping[str, Array]


class Runner(Protocol):
    """A loaded model: feeds by input name in, outputs by name out."""

    def __call__(self, feeds: Feeds, /) -> dict[str, Array]:
        """Run once."""
        ...


RunnerFactory = Callable[[ir.Model], Runner]


class Statistic(Protocol):
    """The result of a collector; `+` merges the results of two sets of runs, exactly."""

    def __add__(self, other: Self, /) -> Self:
        """Statistic of the runs of both, this one's first."""
        ...


S = TypeVar("S", bound=Statistic)


class Collector(ABC, Generic[S]):
    """A statistic of named tensors. Subclasses are frozen dataclasses, so equal ones are one.

    A new collector is a file with a result class and these three methods; `min_max.py` is the
    smallest.
    """

    @property
    @abstractmethod
    def tensors(self) -> tuple[str, ...]:
        """Names of the tensors it observes."""

    @abstractmethod
    def emit(self, emit: Emitter, values: Sequence[ir.Value]) -> Sequence[ir.Value]:
        """Append reduction nodes over `values`, one per name; return what a run should output."""

    @abstractmethod
    def read(self, outputs: Sequence[Array]) -> S:
        """The statistic of one run from the outputs that `emit` asked for."""

    def fold(self, total: S, outputs: Sequence[Array]) -> S:
        """`total` with one more run added; it may reuse the memory of `total`."""
        return total + self.read(outputs)


def scalar(array: Array) -> float:
    """The only element of an output."""
    return float(np.asarray(array).reshape(-1)[0])
