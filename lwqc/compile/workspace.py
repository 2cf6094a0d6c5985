"""One model under compression: its analysis, data, reference outputs and measured candidates."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.backends.cpu import CpuTarget
from lwqc.backends.cpu_rules import RULES
from lwqc.backends.cuda import CudaTarget
from lwqc.backends.target import Lowered, Target
from lwqc.backends.tensorrt import TensorrtTarget
from lwqc.compile.locks import data_source, tool_versions
from lwqc.compile.site_grams import SiteGrams
from lwqc.errors import InputError, SessionError
from lwqc.graph.cost import node_costs, total
from lwqc.graph.shapes import shapes_at
from lwqc.graph.sites import Site, SiteAnalysis, find_sites
from lwqc.model import io
from lwqc.passes.cleanup import Cleaned
from lwqc.passes.encoded_weights import EncodedWeights, Known
from lwqc.passes.widen_bfloat16 import WidenBfloat16, has_bfloat16
from lwqc.plans.goals import Goals
from lwqc.plans.plan import DataSource, Floats, Plan, SiteEntry, Source
from lwqc.runtime.data import Dataset
from lwqc.runtime.measure import Metric, compare, worst_drop
from lwqc.runtime.recorded import Recorded
from lwqc.runtime.served import Served, Sizes, served_inputs
from lwqc.runtime.session import Loadable, Session, SessionSettings, has_bodies
from lwqc.runtime.stats.divergence import Divergence, divergences
from lwqc.runtime.stats.ranges import Range

Feeds = Mapping[str, NDArray[Any]]
TARGETS: Mapping[str, Callable[[], Target]] = {
    "cpu": CpuTarget,  # by what this processor can do
    **{name: partial(CpuTarget, rules) for name, rules in RULES.items()},
    "cuda": CudaTarget,
    "tensorrt": TensorrtTarget,
}
_HALF = (0.02, 6e4)  # peaks of weights whose scales are normal float16 numbers at any bits
_LARGE_BYTES = 1_000_000_000  # from here on memory counts more than encoding twice
_SEARCH_BATCHES = 4  # batches that candidates are compared on while searching


def make_target(name: str) -> Target:
    """The target of that name. Raises InputError for an unknown one."""
    if name not in TARGETS:
        raise InputError(f"target {name!r} is not known; expected one of {', '.join(TARGETS)}")
    return TARGETS[name]()


class KnownCodes(Known, Protocol):
    """Encoded weights that know the model whose sites they are of."""

    def on(self, model: ir.Model) -> Self:
        """The same for a changed model."""


@dataclass(frozen=True)
class Candidate:
    """A plan and what came of it. drop: of the metric if there is one, else of the outputs."""

    plan: Plan
    lowered: Lowered
    size_bytes: int
    drop: float


@dataclass
class Workspace:
    """Everything that a search over plans shares.

    token_weights: Gram matrices count tokens by how much attention reads them. versions: the same
    work on transformed models, see `lwqc.compile.steps.transforms.version`. origin: the work on the
    model that results are compared with; None for that one itself. incomparable: outputs left out
    of it.
    cleaned: the same of `lwqc.compile.cleaned`, with what was done.
    known: weights whose codes the model had already. allow_fallback: nodes that the target would
    run elsewhere are accepted. floats: what the target computes in, once that is decided.
    probed: sites -> error at the outputs that was measured with them in the probe format.
    ranges: of activations, by method and tensor.
    slow_products, activation_shapes: what the functions of these names in `timing` found.
    shapes: sizes of dynamic dimensions that the model will serve; none: those of the data.
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
    known: KnownCodes | None = field(default=None, repr=False)
    allow_fallback: bool = False
    floats: Floats | None = None
    incomparable: frozenset[str] = frozenset()
    progress: Callable[[str, int, int], None] | None = field(default=None, repr=False)
    versions: dict[str, Workspace] = field(default_factory=dict, repr=False)
    probed: dict[tuple[str, ...], float] = field(default_factory=dict, repr=False)
    ranges: dict[tuple[str, str], Range] = field(default_factory=dict, repr=False)
    slow_products: dict[int, frozenset[str]] = field(default_factory=dict, repr=False)
    activation_shapes: dict[str, dict[str, tuple[int, ...]]] = field(
        default_factory=dict, repr=False
    )
    cleaned: dict[str, tuple[Workspace, Cleaned]] = field(default_factory=dict, repr=False)
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
        if self.is_large:
            return entry
        if site not in self._peaks:
            weight = self.weights.weight(site)
            peak = max(float(weight.max(initial=0)), -float(weight.min(initial=0)))
            self._peaks[site] = peak if np.isfinite(weight).all() else np.inf
        peak = self._peaks[site]
        if peak == np.inf:
            return "holds NaN or infinity"
        fmt = entry.weight
        # onnxruntime 1.31.1 computes 8-bit blocks with 8-bit activations wrongly where
        # optimizations are off and scales are cast from float16.
        cast = fmt.bits == 8 and fmt.block is not None and entry.activation == "dynamic"
        fits = peak == 0 or _HALF[0] < peak < _HALF[1]
        if fmt.scale == "float32" or (fits and not cast):
            return entry
        return entry.model_copy(update={"weight": replace(entry.weight, scale="float32")})

    @cached_property
    def _peaks(self) -> dict[str, float]:
        """Largest magnitude by site."""
        return {}

    def derived(self, model: ir.Model, **changes: Any) -> Workspace:
        """The same work on a changed model; what the original computes stays the reference."""
        known = ("versions", "probed", "ranges", "slow_products", "activation_shapes", "cleaned")
        own: dict[str, Any] = {"floats": None, **{name: {} for name in known}}
        if self.known is not None and "known" not in changes:
            own["known"] = self.known.on(model)
        return replace(self, model=model, origin=self.origin or self, **own, **changes)

    @cached_property
    def source(self) -> Source:
        """Identity of the original model."""
        if self.origin is not None:
            return self.origin.source
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
        path = self.model.meta.get("lwqc_path")
        return path if path and os.path.exists(path) else self.model

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of how the file was read."""
        if self.origin is not None:
            return self.origin.notes
        return tuple(self.model.meta.get("lwqc_notes", ()))

    @property
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
        return list(self.data.limited(_SEARCH_BATCHES))

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
        return [self.recorded(feeds) for feeds in self.search_batches]

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
        return worst_drop(self.compared(session))

    def output_error(self, session: Session) -> float:
        """Error of the outputs by channel, on the search batches; the worst one.

        Infinite where a decision is lost that is the output itself, such as a label.
        """
        found = self.compared(session).values()
        lost = any(d.decisions.labels not in (None, 1) for d in found)
        return math.inf if lost else max((d.error for d in found), default=0.0)

    def compared(self, session: Session) -> dict[str, Divergence]:
        """Comparison with the original on the search batches."""
        known = zip(self.search_batches, self._search_references, strict=True)
        return divergences((reference, session(feeds)) for feeds, reference in known)

    def evaluate(self, plan: Plan) -> tuple[Candidate, Session]:
        """Lower a plan, load it and measure its loss."""
        lowered = self.lower(plan)
        session = self.load(lowered.model)
        return self.measured(plan, lowered, session), session

    def measured(self, plan: Plan, lowered: Lowered, session: Session) -> Candidate:
        """A candidate of a plan that is lowered and loaded."""
        size = io.serialized_bytes(lowered.model)
        return Candidate(plan, lowered, size, self.drop(session))

    def tried(self, plan: Plan) -> Candidate:
        """The same; the drop is infinite where the runtime does not load or run what comes of it.

        Why is kept in `unusable`.
        """
        try:
            return self.evaluate(plan)[0]
        except SessionError as error:
            self.unusable[str(error)] = None
            lowered = self.lower(plan)
            return Candidate(plan, lowered, io.serialized_bytes(lowered.model), math.inf)

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
        return worst_drop(self.divergence(session))

    def holds(self, candidate: Candidate, session: Session, limit: float) -> bool:
        """Whether a drop is allowed on all data; a metric was already taken on all of its own."""
        drop = candidate.drop if self.metric is not None else self.full_drop(session)
        return drop <= limit

    def divergence(self, session: Session) -> dict[str, Divergence]:
        """Full comparison with the original over all data."""
        return compare(self.recorded, session, self.data, without=self.incomparable)


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
