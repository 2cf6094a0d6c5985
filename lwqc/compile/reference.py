"""A model that results are compared with: what it computes, its size and its speed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.compile.job import Job
from lwqc.compile.locks import data_source
from lwqc.errors import InputError
from lwqc.model import io
from lwqc.model.data_files import stored_bytes
from lwqc.plans.plan import DataSource, Source
from lwqc.runtime.counted import counted
from lwqc.runtime.loadable import Loadable
from lwqc.runtime.proof import original
from lwqc.runtime.recorded import Recorded
from lwqc.runtime.session import Session, has_bodies

_OUTPUTS = "outputs of the original"


@dataclass(frozen=True, eq=False)
class Reference:
    """A model as it was given, which nothing changes.

    name: for messages and plans. known_metric: the job's metric of it; None where it is to be
    taken.
    """

    model: ir.Model
    name: str
    job: Job
    known_metric: float | None = None

    @cached_property
    def session(self) -> Session:
        """The model in a default session. Raises InputError where it is only run in parts."""
        self.job.whole(self.name)
        return Session(self.loadable, label=self.name, risky=has_bodies(self.model))

    @cached_property
    def recorded(self) -> Recorded:
        """The model, which runs once for feeds that come again."""
        return Recorded(self.session)

    @property
    def loadable(self) -> Loadable:
        """The model as a session can load it: its file, or the model where it has none."""
        return original(self.model)

    @cached_property
    def timed_session(self) -> Session:
        """The model as the target runs it."""
        return self.session if self.job.runs_here else self.job.load(self.model, label=self.name)

    @cached_property
    def judged(self) -> list[dict[str, NDArray[Any]]]:
        """Its outputs on the feeds that candidates are compared on."""
        feeds = self.job.data.judge
        return list(counted(map(self.recorded, feeds), _OUTPUTS, len(feeds)))

    @cached_property
    def metric(self) -> float:
        """The user's metric of it. Raises InputError where it is no number, or there is none."""
        metric = self.job.metric
        if metric is None:
            raise InputError("no metric was given")
        if self.known_metric is not None:
            return self.known_metric
        found = metric(self.session)
        if not math.isfinite(found):
            raise InputError(f"{metric.name}: is {found} on the original; expected a number")
        return found

    @cached_property
    def size_bytes(self) -> int:
        """Bytes of its files, or of its weights when it never was a file."""
        return stored_bytes(self.model)

    @cached_property
    def macs(self) -> int:
        """Multiply-accumulates at the sizes of the first feeds, where known."""
        return self.job.macs(self.model)

    @cached_property
    def source(self) -> Source:
        """Identity of the model."""
        return Source(digest=io.model_digest(self.model), name=self.name)

    @cached_property
    def data_source(self) -> DataSource:
        """Identity of the data."""
        return data_source(self.job.data.fit)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of how the file was read."""
        return tuple(self.model.meta.get("lwqc_notes", ()))
