"""What a model is compressed for: what the user asked for, aside from budgets."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import onnx_ir as ir

from lwqc.backends.target import Target
from lwqc.compile.job_data import JobData
from lwqc.errors import InputError
from lwqc.graph.cost import node_costs, total
from lwqc.graph.shapes import shapes_at
from lwqc.model import io
from lwqc.passes.widen_bfloat16 import WidenBfloat16, has_bfloat16
from lwqc.plans.options import KvCache, Progress
from lwqc.plans.output_bounds import OutputWeights
from lwqc.runtime.cluster import require_dask
from lwqc.runtime.measure import Metric
from lwqc.runtime.parts import Room
from lwqc.runtime.session import Session, SessionSettings


@dataclass(frozen=True, eq=False)
class Job:
    """What a model is compressed for, and on what; the same for every version of the model.

    skip_checks: results are neither run nor measured. allow_fallback: nodes that the target would
    run elsewhere are accepted. weights: what losses of outputs are multiplied by, where that is
    not 1. timings: seconds of single sites by what was timed. unusable: why candidates were given
    up that the runtime does not load or run, a line each. room: what the work may take of memory;
    then no model is loaded whole, and None bounds nothing. cluster: address of a Dask scheduler
    whose workers encode weights, "" for none.
    """

    target: Target
    data: JobData
    metric: Metric | None = None
    skip_checks: bool = False
    allow_fallback: bool = False
    kv_cache: KvCache | None = None
    weights: OutputWeights = field(default_factory=OutputWeights)
    room: Room | None = None
    cluster: str = ""
    progress: Progress | None = field(default=None, repr=False)
    timings: dict[str, tuple[float, float]] = field(default_factory=dict, repr=False)
    unusable: dict[str, None] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.cluster:
            require_dask()

    def report(self, stage: str) -> Callable[[int, int], None]:
        """A progress callback (done, total) for one stage."""
        if self.progress is None:
            return lambda done, total: None
        return partial(self.progress, stage)

    def give_up(self, why: Exception | str) -> None:
        """Keep why a candidate cannot be used."""
        self.unusable[str(why)] = None

    def whole(self, what: str) -> None:
        """Raises InputError for what loads a model at once, where that is not allowed."""
        if self.room is not None:
            raise InputError(f"--memory works on a model in parts, but {what} takes it whole")

    @property
    def checked_whole(self) -> bool:
        """Whether results may be loaded at once to look at them."""
        return not self.skip_checks and self.room is None

    @property
    def timed(self) -> bool:
        """Whether the target's speed can be measured here."""
        return not self.unmeasured()

    def unmeasured(self) -> str:
        """Why speed cannot be measured, or ""."""
        if self.room is not None:
            return "no model is loaded whole (--memory)"
        return self.target.unmeasured()

    @property
    def runs_here(self) -> bool:
        """Whether the target is this processor: its default sessions are what single sites take."""
        return self.timed and self.target.settings() == SessionSettings()

    def load(self, model: ir.Model | str | os.PathLike[str], label: str = "candidate") -> Session:
        """A session as the target runs its graphs here.

        The CPU stands in for a missing device; it has no bfloat16, which float32 stands in for.
        Raises InputError where models are only run in parts.
        """
        self.whole(label)
        if not self.timed:
            loaded = model if isinstance(model, ir.Model) else io.load(model)
            if has_bfloat16(loaded):
                model = loaded.clone()
                WidenBfloat16()(model)
        return self.target.session(model, label)

    def macs(self, model: ir.Model) -> int:
        """Multiply-accumulates of a model at the sizes of the first feeds, where known."""
        shapes = shapes_at(model, {n: a.shape for n, a in self.data.fit.first().items()})
        return total(node_costs(model.graph, shapes)).known_macs
