"""One model under compression: its analysis, data, reference outputs and measured candidates."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.backends.target import Lowered, Target
from lwqc.compile.locks import data_source, tool_versions
from lwqc.compile.site_grams import SiteGrams
from lwqc.errors import InputError, SessionError
from lwqc.graph.cost import node_costs, total
from lwqc.graph.shapes import shapes_at
from lwqc.graph.sites import Site, SiteAnalysis, find_sites
from lwqc.model import io
from lwqc.model.extensions import TARGETS
from lwqc.passes.cleanup import Cleaned
from lwqc.passes.encoded_weights import EncodedWeights, Known
from lwqc.passes.widen_bfloat16 import WidenBfloat16, has_bfloat16
from lwqc.plans.goals import Goals
from lwqc.plans.options import Sizes
from lwqc.plans.plan import DataSource, Floats, Plan, SiteEntry, Source
from lwqc.quant.half import fits_half
from lwqc.runtime.counted import counted
from lwqc.runtime.data import Dataset
from lwqc.runtime.loadable import Loadable
from lwqc.runtime.measure import Metric, compare, losses, worst_drop
from lwqc.runtime.proof import original
from lwqc.runtime.recorded import Recorded
from lwqc.runtime.served import Served, served_inputs
from lwqc.runtime.session import Session, SessionSettings, has_bodies
from lwqc.runtime.stats.divergence import Divergence, Loss, LossesMeter
from lwqc.runtime.stats.ranges import Range

Feeds = Mapping[str, NDArray[Any]]
_HALF = (0.02, 6e4)  # peaks of weights whose scales are normal float16 numbers at any bits
_LARGE_BYTES = 1_000_000_000  # from here on memory counts more than encoding twice
_OUTPUTS = "outputs of the original"
_SEARCH_BATCHES = 4  # batches that candidates are compared on while searching


def make_target(name: str) -> Target:
    """The target of that name. Raises InputError for an unknown one."""
    made: Target = TARGETS.find(name)()
    if name in TARGETS.installed() and made.name != name:
        raise InputError(f"target {name}: calls itself {made.name}, which plans would not find")
    return made


class KnownCodes(Known, Protocol):
    """Encoded weights that know the model whose sites they are of."""

    @property
    def names(self) -> Collection[str]:
        """Stored floats that stand for codes."""

    def on(self, model: ir.Model) -> Self:
        """The same for a changed model."""


@dataclass(frozen=True)
class Candidate:
    """A plan and what came of it.

    drop: of the metric if there is one, else of the outputs on the search batches. compared: the
    outputs of these, which the rest of the data can be added to; None where they were not compared.
    """

    plan: Plan
    lowered: Lowered
    drop: float
    compared: LossesMeter | None = field(default=None, repr=False, compare=False)

    @cached_property
    def size_bytes(self) -> int:
        """Bytes of the model when saved."""
        return io.serialized_bytes(self.lowered.model)


@dataclass
class Workspace:
    """Everything that a search over plans shares.

    token_weights: Gram matrices count tokens by how much attention reads them. versions: the same
    work on transformed models, see `lwqc.compile.steps.transforms.version`. origin: the work on the
    model that results are compared with; None for that one itself. raised: version of the
    default operator set that the model was converted to, None for its own. incomparable: outputs
    left out of `origin`.
    start: the work on the model that plans are for, where an earlier step made it out of the
    original, see `lwqc.decide.continued`; None where that is the original. earlier: recipes of
    those steps, the first one first.
    cleaned: the same of `lwqc.compile.cleaned`, with what was done.
    known: weights whose codes the model had already. allow_fallback: nodes that the target would
    run elsewhere are accepted. floats: what the target computes in, once that is decided.
    probed: layout of an entry -> sites -> error at the outputs that was measured with them in it.
    ranges: of activations, by method and tensor.
    slow_products: what the function of this name in `timing` found.
    tensor_shapes: of activations, by inputs that were served and tensor.
    shapes: sizes of dynamic dimensions that the model will serve; none: those of the data.
    drops: of plans that were measured on the search batches, see `known_drop`.
    timings: seconds of single sites by what was timed, of this and all derived work.
    unusable: why candidates were given up that the runtime does not load or run, a line each, of
    this work and all that is derived from it.
    """

    model: ir.Model
    target: Target
    data: Dataset
    metric: Metric | None = None
    name: str = "model"
    skip_checks: bool = False
    token_weights: bool = False
    shapes: Sequence[Sizes] = ()
    origin: Workspace | None = field(default=None, repr=False)
    raised: int | None = None
    start: Workspace | None = field(default=None, repr=False)
    earlier: tuple[str, ...] = ()
    known: KnownCodes | None = field(default=None, repr=False)
    allow_fallback: bool = False
    floats: Floats | None = None
    incomparable: frozenset[str] = frozenset()
    progress: Callable[[str, int, int], None] | None = field(default=None, repr=False)
    versions: dict[str, Workspace] = field(default_factory=dict, repr=False)
    probed: dict[str, dict[tuple[str, ...], float]] = field(default_factory=dict, repr=False)
    ranges: dict[tuple[str, str], Range] = field(default_factory=dict, repr=False)
    slow_products: dict[int, frozenset[str]] = field(default_factory=dict, repr=False)
    tensor_shapes: dict[str, dict[str, tuple[int, ...]]] = field(default_factory=dict, repr=False)
    cleaned: dict[str, tuple[Workspace, Cleaned]] = field(default_factory=dict, repr=False)
    drops: dict[str, float] = field(default_factory=dict, repr=False)
    timings: dict[str, tuple[float, float]] = field(default_factory=dict, repr=False)
    unusable: dict[str, None] = field(default_factory=dict, repr=False)

    def report(self, stage: str) -> Callable[[int, int], None]:
        """A progress callback (done, total) for one stage."""
        if self.progress is None:
            return lambda done, total: None
        return partial(self.progress, stage)

    @cached_property
    def analysis(self) -> SiteAnalysis:
        """Sites of the model."""
        return find_sites(self.model)

    @property
    def sites(self) -> dict[str, Site]:
        """Sites by name."""
        return {site.name: site for site in self.analysis.sites}

    @property
    def opset(self) -> int:
        """Version of the default operator set."""
        return int(self.model.opset_imports.get("", 1))

    @cached_property
    def weights(self) -> EncodedWeights:
        """Encoded weights, shared by all candidates."""
        budget = (64 if self.is_large else 512) << 20
        return EncodedWeights(
            self.model,
            io.read_array,
            budget,
            self.grams,
            self.known or {},
            progress=self.report("encoding"),
        )

    @cached_property
    def grams(self) -> SiteGrams:
        """Gram matrices of the sites' inputs."""
        return self.grams_of(self.model, self.analysis.sites)

    def grams_of(self, model: ir.Model, sites: Sequence[Site]) -> SiteGrams:
        """Gram matrices of another version of the model."""
        report = self.report("statistics")
        return SiteGrams(model, sites, self.data, report, self.token_weights)

    def storable(self, site: str, entry: SiteEntry) -> SiteEntry | str:
        """The entry, with float32 scales where float16 ones would not do; or why it cannot be.

        Weights of models of more than a gigabyte are not looked at.
        """
        fmt = entry.weight
        # onnxruntime 1.31.1 takes scales that are not stored as zeros in blocks with 8-bit
        # activations: where optimizations are off, those that are cast from float16.
        if fmt.block is not None and fmt.scale != "float32" and entry.activation == "dynamic":
            fmt = replace(fmt, scale="float32")
            entry = entry.model_copy(update={"weight": fmt})
        if self.is_large:
            return entry
        if site not in self._peaks:
            weight = self.weights.weight(site)
            peak = max(float(weight.max(initial=0)), -float(weight.min(initial=0)))
            self._peaks[site] = peak if np.isfinite(weight).all() else np.inf
        peak = self._peaks[site]
        if peak == np.inf:
            return "holds NaN or infinity"
        if fmt.kind == "fp16":
            return entry if fits_half(peak) else "float16 does not hold its numbers"
        if fmt.scale == "float32" or peak == 0 or _HALF[0] < peak < _HALF[1]:
            return entry
        return entry.model_copy(update={"weight": replace(fmt, scale="float32")})

    @cached_property
    def _peaks(self) -> dict[str, float]:
        """Largest magnitude by site."""
        return {}

    def derived(self, model: ir.Model, **changes: Any) -> Workspace:
        """The same work on a changed model; what the original computes stays the reference."""
        known = (
            "versions", "probed", "ranges", "slow_products", "tensor_shapes", "cleaned", "drops"
        )  # fmt: skip
        own: dict[str, Any] = {"floats": None, **{name: {} for name in known}}
        if self.known is not None and "known" not in changes:
            own["known"] = self.known.on(model)
        return replace(self, model=model, origin=self.origin or self, **own, **changes)

    @property
    def original(self) -> Workspace:
        """The work on the model that results are compared with."""
        return self.origin or self

    @property
    def begun(self) -> Workspace:
        """The work on the model that plans are for."""
        return self.start or self.original

    @property
    def gone(self) -> frozenset[str]:
        """Outputs of the original that an earlier step took away."""
        return frozenset(_output_types(self.original.model)) - set(_output_types(self.begun.model))

    @property
    def other_floats(self) -> bool:
        """Whether an earlier step gave outputs another type."""
        before = _output_types(self.original.model)
        return any(dtype != before[n] for n, dtype in _output_types(self.begun.model).items())

    @property
    def files(self) -> list[Path]:
        """Every file that the models of this work still read from."""
        models = [self.original.model, self.begun.model, self.model]
        paths = [Path(m.meta["lwqc_path"]) for m in models if m.meta.get("lwqc_path")]
        return list(dict.fromkeys([*paths, *(f for m in models for f in data_files(m))]))

    @cached_property
    def source(self) -> Source:
        """Identity of the model that plans are for."""
        if self.begun is not self:
            return self.begun.source
        return Source(digest=io.model_digest(self.model), name=self.name)

    @cached_property
    def data_source(self) -> DataSource:
        """Identity of the data."""
        return self.origin.data_source if self.origin is not None else data_source(self.data)

    def stamped(self, plan: Plan, goals: Goals | None = None) -> Plan:
        """The plan with what it depends on; while it is only executed it needs nothing of that.

        goals: what it was made for; where they bound nothing, what the plan says stays.
        """
        depends = {"source": self.source, "data": self.data_source, "tools": tool_versions()}
        asked = goals.asked if goals is not None else {}
        return plan.model_copy(update={**depends, "budgets": asked or plan.budgets})

    @cached_property
    def reference(self) -> Session:
        """The original in a default session."""
        if self.origin is not None:
            return self.origin.reference
        return Session(self.loadable, label=self.name, risky=has_bodies(self.model))

    @cached_property
    def recorded(self) -> Recorded:
        """The original, which runs once for feeds that come again."""
        return self.origin.recorded if self.origin is not None else Recorded(self.reference)

    @property
    def loadable(self) -> Loadable:
        """The original as a session can load it: its file, or the model where it has none."""
        if self.origin is not None:
            return self.origin.loadable
        return original(self.model)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of how the file was read."""
        if self.origin is not None:
            return self.origin.notes
        return tuple(self.model.meta.get("lwqc_notes", ()))

    @cached_property
    def is_large(self) -> bool:
        """Whether memory counts more than time."""
        return io.weight_bytes(self.model) > _LARGE_BYTES

    @cached_property
    def float_bytes(self) -> int:
        """Bytes of the original: its files, or its weights when it never was a file."""
        return self.origin.float_bytes if self.origin is not None else stored_bytes(self.model)

    @cached_property
    def macs(self) -> int:
        """Multiply-accumulates of the original at the sizes of the first feeds, where known."""
        return self.origin.macs if self.origin is not None else self.macs_of(self.model)

    def macs_of(self, model: ir.Model) -> int:
        """Those of another model of the same inputs."""
        shapes = shapes_at(model, {n: a.shape for n, a in self.data.first().items()})
        return total(node_costs(model.graph, shapes)).known_macs

    @cached_property
    def search_batches(self) -> list[dict[str, NDArray[Any]]]:
        """A few feeds kept in memory for the search."""
        if self.origin is not None:
            return self.origin.search_batches
        return list(counted(self.data.limited(_SEARCH_BATCHES), "the data that is kept"))

    @cached_property
    def served(self) -> tuple[Served, ...]:
        """Inputs to time the model on."""
        if self.origin is not None:
            return self.origin.served
        return served_inputs(self.model, self.shapes, self.data)

    @cached_property
    def _search_references(self) -> list[dict[str, NDArray[Any]]]:
        if self.origin is not None:
            known = self.origin._search_references
            return [{n: v for n, v in r.items() if n not in self.incomparable} for r in known]
        batches = self.search_batches
        return list(counted(map(self.recorded, batches), _OUTPUTS, len(batches)))

    @cached_property
    def metric_reference(self) -> float:
        """The metric of the original."""
        if self.metric is None:
            raise InputError("no metric was given")
        if self.origin is not None:
            return self.origin.metric_reference
        found = self.metric(self.reference)
        if not math.isfinite(found):
            raise InputError(f"{self.metric.name}: is {found} on the original; expected a number")
        return found

    def lower(self, plan: Plan) -> Lowered:
        """Execute a plan with the shared weights."""
        if plan.floats is None and self.floats is not None:
            plan = plan.model_copy(update={"floats": self.floats})
        return self.target.lower(self.model, plan, self.weights)

    def unquantized_bytes(self, site: Site) -> int:
        """What a site's weight takes without a number format."""
        return site.float_bytes if self.floats is None else min(site.float_bytes, 2 * site.size)

    def drop(self, session: Session) -> float:
        """Loss of a candidate: on the metric, or on the search batches against the original."""
        if self.metric is not None:
            return self.metric.drop(self.metric_reference, self.metric(session))
        return worst_drop(self._compared(session).result())

    def output_error(self, session: Session) -> float:
        """Error of the outputs by channel, on the search batches; the worst one.

        Infinite where a decision is lost that is the output itself, such as a label.
        """
        return worst_error(self._compared(session).result())

    def moved(self, session: Session) -> float:
        """The same against the outputs of the model that plans are for."""
        if self.start is None:
            return self.output_error(session)
        return replace(self, origin=self.start).output_error(session)

    def _compared(self, session: Session) -> LossesMeter:
        """Comparison with the original on the search batches."""
        known = zip(self.search_batches, self._search_references, strict=True)
        return LossesMeter().over((reference, session(feeds)) for feeds, reference in known)

    def evaluate(self, plan: Plan) -> tuple[Candidate, Session]:
        """Lower a plan, load it and measure its loss."""
        lowered = self.lower(plan)
        session = self.load(lowered.model)
        return self.measured(plan, lowered, session), session

    def measured(self, plan: Plan, lowered: Lowered, session: Session) -> Candidate:
        """A candidate of a plan that is lowered and loaded."""
        compared = None if self.metric is not None else self._compared(session)
        drop = self.drop(session) if compared is None else worst_drop(compared.result())
        self.drops[_decisions(plan)] = drop
        return Candidate(plan, lowered, drop, compared)

    def known_drop(self, plan: Plan, *, on_all: bool = False) -> float | None:
        """What a plan with the same formats was measured to lose; None where it was not.

        on_all: on all data, not on the search batches alone.
        """
        if on_all and self.metric is None and not self._search_sees_all:
            return None
        return self.drops.get(_decisions(plan))

    def tried(self, plan: Plan) -> Candidate:
        """The same; the drop is infinite where the runtime does not load or run what comes of it.

        Why is kept in `unusable`.
        """
        return self._tried(plan, on_all=False)

    def judged(self, plan: Plan) -> Candidate:
        """The same, the drop being that on all data."""
        return self._tried(plan, on_all=True)

    def _tried(self, plan: Plan, *, on_all: bool) -> Candidate:
        try:
            candidate, session = self.evaluate(plan)
            drop = self._whole_drop(candidate, session) if on_all else candidate.drop
            return replace(candidate, drop=drop)
        except SessionError as error:
            self.unusable[str(error)] = None
            return Candidate(plan, self.lower(plan), math.inf)

    @property
    def timed(self) -> bool:
        """Whether the target's speed can be measured here."""
        return not self.target.unmeasured()

    @property
    def runs_here(self) -> bool:
        """Whether the target runs its graphs in default sessions, as single sites are timed in."""
        return self.target.settings() == SessionSettings()

    @cached_property
    def timed_reference(self) -> Session:
        """The original as the target runs it."""
        if self.origin is not None:
            return self.origin.timed_reference
        if self.runs_here:
            return self.reference
        return self.load(self.model, label=self.name)

    @property
    def timed_start(self) -> Session:
        """The model that plans are for as the target runs it: what no step may be slower than."""
        return self.begun.timed_reference

    def load(self, model: ir.Model | str | os.PathLike[str], label: str = "candidate") -> Session:
        """A session as the target runs its graphs here.

        The CPU stands in for a missing device; it has no bfloat16, which float32 stands in for.
        """
        if not self.timed:
            loaded = model if isinstance(model, ir.Model) else io.load(model)
            if has_bfloat16(loaded):
                model = loaded.clone()
                WidenBfloat16()(model)
        return Session(model, self.target.settings(), label=label)

    def full_drop(self, session: Session) -> float:
        """Loss of a candidate on the metric, or on all data against the original."""
        if self.metric is not None:
            return self.drop(session)
        return worst_drop(losses(self.recorded, session, self.data, without=self.incomparable))

    def holds(self, candidate: Candidate, session: Session, limit: float) -> bool:
        """Whether a drop is allowed on all data; a metric was already taken on all of its own."""
        return self._whole_drop(candidate, session) <= limit

    def _whole_drop(self, candidate: Candidate, session: Session) -> float:
        if self.metric is not None or self._search_sees_all:
            return candidate.drop
        if candidate.compared is None or not self._search_begins:
            return self.full_drop(session)
        meter = copy.deepcopy(candidate.compared)
        for feeds in islice(self.data, _SEARCH_BATCHES, None):
            known = self.recorded(feeds)
            meter.add(
                {n: v for n, v in known.items() if n not in self.incomparable}, session(feeds)
            )
        return worst_drop(meter.result())

    @property
    def _search_begins(self) -> bool:
        """Whether the search batches are those that the data begins with."""
        return self.origin is None or self.origin.data is self.data

    @cached_property
    def _search_sees_all(self) -> bool:
        """Whether there is no more data than the search batches."""
        if not self._search_begins:
            return False
        if self.origin is not None:
            return self.origin._search_sees_all
        return len(list(self.data.limited(_SEARCH_BATCHES + 1))) <= _SEARCH_BATCHES

    def divergence(self, session: Session) -> dict[str, Divergence]:
        """Full comparison with the original over all data."""
        return compare(self.recorded, session, self.data, without=self.incomparable)


def worst_error(found: Mapping[str, Loss | Divergence]) -> float:
    """Error by channel of the output that moved most; infinite where a label is another one."""
    lost = any(d.decisions.labels not in (None, 1) for d in found.values())
    return math.inf if lost else max((d.error for d in found.values()), default=0.0)


def _output_types(model: ir.Model) -> dict[str, ir.DataType | None]:
    return {v.name or "": v.dtype for v in model.graph.outputs}


def _decisions(plan: Plan) -> str:
    """What of a plan makes a candidate of one model."""
    return plan.model_dump_json(
        exclude={"source", "recipe", "kept_float", "untransformed", "notes"}
    )


def stored_bytes(model: ir.Model) -> int:
    """Bytes of a model's files, or of its graph and weights when it is only in memory."""
    path = model.meta.get("lwqc_path")
    if not path or not Path(path).exists():
        return io.serialized_bytes(model)
    return Path(path).stat().st_size + sum(f.stat().st_size for f in data_files(model))


def data_files(model: ir.Model) -> Sequence[Path]:
    """External data files that the model reads."""
    files = {
        Path(value.const_value.path)
        for graph in model.graphs()
        for value in graph.initializers.values()
        if isinstance(value.const_value, ir.ExternalTensor)
    }
    return sorted(files)
