"""What a named metric judges on: data with labels, or the original's own answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.errors import InputError
from lwqc.runtime.data import Dataset, Feeds
from lwqc.runtime.proof import original
from lwqc.runtime.session import Session
from lwqc.runtime.sources.labels import Labels

Array = NDArray[Any]
Run = Callable[[Mapping[str, Array]], dict[str, Array]]


@dataclass(frozen=True, eq=False)
class Task:
    """The original model and its data.

    asked: the output to judge by, "" for the one that fits. options: what else the user says of
    the metric.
    """

    model: ir.Model
    data: Dataset
    asked: str = ""
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def labels(self) -> Labels | None:
        """What the samples are, where that is known."""
        return self._labels if self._labels is None or self._labels.boxes is None else None

    @property
    def boxes(self) -> tuple[NDArray[np.float64], ...] | None:
        """What is in each image, see `Labels.boxes`; None where that is not known."""
        return None if self._labels is None else self._labels.boxes

    @cached_property
    def _labels(self) -> Labels | None:
        return self.data.labels()

    @cached_property
    def _session(self) -> Session:
        return Session(original(self.model), label="the original")

    @cached_property
    def first(self) -> dict[str, Array]:
        """Outputs of the original on the first feeds."""
        return self._session(self.data.first())

    def output(self, fits: Callable[[Array], bool], what: str) -> str:
        """The output that is asked for, or else the first one that fits. Raises InputError."""
        names = [self.asked] if self.asked else list(self.first)
        found = next((n for n in names if n in self.first and fits(self.first[n])), None)
        if found is None:
            shown = ", ".join(f"{n} {list(a.shape)}" for n, a in self.first.items())
            asked = f"output {self.asked} is not" if self.asked else "no output is"
            raise InputError(f"{asked} {what}; the model gives {shown}")
        return found

    def answers(self, run: Run, output: str) -> Iterator[tuple[Feeds, Array]]:
        """An output for each set of feeds."""
        for feeds in self.data:
            yield feeds, run(feeds)[output]

    def originals(self) -> Iterator[tuple[Feeds, dict[str, Array]]]:
        """Outputs of the original for each set of feeds."""
        return ((feeds, self._session(feeds)) for feeds in self.data)

    def expected(self, output: str) -> Iterator[Array]:
        """The same of the original."""
        return (self._session(feeds)[output] for feeds in self.data)
