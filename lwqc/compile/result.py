"""The report on a compressed model, as data."""

from __future__ import annotations

import dataclasses
import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lwqc.graph.sites import Skipped
from lwqc.model.numerals import size_text
from lwqc.model.told import Told
from lwqc.plans.bounds import Amount
from lwqc.plans.goals import Outcome
from lwqc.runtime.flips import Flips
from lwqc.runtime.measure import Latency, OperatorRow, drop_of_others, worst_drop
from lwqc.runtime.session import VERSION
from lwqc.runtime.stats.divergence import Divergence


@dataclass(frozen=True)
class SiteRow:
    """What became of one site.

    reason: why it stayed float, or partly so. entropy_bytes: what codes that no kernel reads would
    take in the best code without memory.
    """

    name: str
    op: str
    shape: tuple[int, ...]
    format: str
    activation: str
    kernel: str
    bytes_before: int
    bytes_after: int
    reason: str
    entropy_bytes: int | None = None

    @property
    def weights(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class ShapeLatency:
    """Time of one run of the original and of the result. shape: the sizes of the inputs."""

    shape: str
    before: Latency
    after: Latency

    @property
    def speedup(self) -> float:
        """Time of the original over that of the result, in the same rounds; see `Latency`."""
        return self.before.relative / self.after.relative

    def reached(self, bound: Amount) -> float:
        """Milliseconds that count for a bound: of a share of the original's, by the same rounds."""
        return self.before.median_ms / self.speedup if bound.relative else self.after.median_ms


@dataclass(frozen=True)
class GroupRow:
    """What became of one group of channels. reason: why it stayed whole."""

    name: str
    marks: tuple[str, ...]
    before: int
    after: int
    reason: str


@dataclass(frozen=True)
class PruningReport:
    """What pruning removed and what it could not.

    macs, parameters: before and after, at the sizes of the data. frozen: axes that belong to no
    group, as (tensor, axis, size, reason). barriers: nodes that nothing could be told through, and
    why. not_refitted: layers that the compensation left as sliced, and why.
    """

    macs: tuple[int, int]
    parameters: tuple[int, int]
    groups: tuple[GroupRow, ...]
    frozen: tuple[tuple[str, int, int, str], ...]
    barriers: tuple[tuple[str, str], ...]
    not_refitted: tuple[tuple[str, str], ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class BranchRow:
    """A removed branch. step: of the removal it went with, from 1; branches of a block share one.

    score: by which it was chosen, divergence: of the outputs from then on; None when the plan was
    made before. compensation: what took its place, or why nothing could.
    """

    name: str
    kind: str
    step: int
    score: float | None
    divergence: float | None
    compensation: str


@dataclass(frozen=True)
class RemovalReport:
    """What the removal of branches changed.

    there_were: branches of the model, all kinds. measure: of `divergence`. refused: residual
    additions that are no removable branch, and why. The rest as in `passes.remove_branches`.
    """

    branches: tuple[BranchRow, ...]
    there_were: int
    measure: str
    refused: tuple[tuple[str, str], ...]
    dropped_inputs: tuple[str, ...]
    dropped_outputs: tuple[str, ...]
    passed_through: Mapping[str, str]
    still_computed: Mapping[str, str]
    left: tuple[str, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ParallelReport:
    """Branches that became parallel: (first, second, divergence with all so far or None).

    tried: the same of what was tried and, when it is not faster, not done.
    there_were: pairs to choose from, None when the plan was made before. latency_ms: before and
    after, where they decided. note: why nothing, or less than asked, was done, or "".
    """

    pairs: tuple[tuple[str, str, float | None], ...]
    tried: tuple[tuple[str, str, float | None], ...]
    there_were: int | None
    measure: str
    latency_ms: tuple[float, float] | None
    note: str


@dataclass(frozen=True)
class SlicingReport:
    """Residual streams that got narrower: (group, width).

    macs: before and after, None when the plan was made before. note: why nothing was done, or "".
    left: streams that stay, and why.
    """

    streams: tuple[tuple[str, int], ...]
    macs: tuple[int, int] | None
    note: str
    left: Mapping[str, str]


@dataclass(frozen=True)
class TokensReport:
    """Fewer tokens from layer to layer: (branch, how many stay, of how many, divergence).

    The divergence is that of the outputs with all steps up to this one; None when the plan was made
    before. importance: by which tokens stay. saved: share of the products behind the first
    attention that goes. measure: of the divergences. left: attention behind which all stay, and
    why.
    """

    steps: tuple[tuple[str, int, int, float | None], ...]
    importance: str = ""
    saved: float | None = None
    measure: str = ""
    left: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SearchReport:
    """How a plan was searched for.

    measure: of the divergence from the original on the calibration data. items: kind -> how many
    were changed, of how many. start, best: divergence of the best start and of the winner before
    compensation. evaluations: of candidates, those known from a resumed run included. seconds: of
    the search. left_out: what could not be chosen, and why. notes: for the user.
    """

    measure: str
    effort: str
    seed: int
    items: Mapping[str, tuple[int, int]]
    start: float
    best: float
    generations: int
    evaluations: int
    seconds: float
    left_out: Mapping[str, str]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Chosen:
    """What a search made of one item. kind: `format`, `width` or `branch`. level: as it became.

    error, most: predicted relative squared error at the outputs of that, and of the strongest level
    that there was.
    """

    name: str
    kind: str
    level: str
    error: float
    most: float


@dataclass(frozen=True)
class Tried:
    """A candidate of a search. cost: predicted, of what was bounded. score: on all judging data."""

    cost: float
    score: float


@dataclass(frozen=True)
class SearchTrace:
    """What a search looked at, for drawings.

    cost: what its candidates were bounded by most, such as `size_bytes`. limit: of that. tried: in
    their order. start, best: where it began and what it chose.
    """

    cost: str
    limit: float
    tried: tuple[Tried, ...]
    start: Tried
    best: Tried
    chosen: tuple[Chosen, ...]


@dataclass(frozen=True, repr=False)
class Report(Told):
    """Measured facts about a saved model; None or empty where `verify` was off.

    source: the original that size, loss, time and memory are measured against. earlier: the steps
    that came before this one, by recipe or by the file that they left; channels, branches and sites
    are those of what they left. latencies: at each shape served. operators: where the time goes at
    the first one. kept_float32: operators that do not compute in the 16-bit type, and why.
    fallbacks: what the target would run elsewhere. unmeasured: why there are no latencies. weighed:
    by budget, what was measured of the original and of the result; None where that was not asked.
    notes: what was done to the file so that it could be read, what was left undone, or done
    otherwise than asked.
    """

    source: str
    source_bytes: int
    output: str
    output_bytes: int
    recipe: str
    target: str
    data: str
    data_kind: str
    sites: tuple[SiteRow, ...]
    skipped: tuple[Skipped, ...]
    earlier: tuple[str, ...] = ()
    rewrites: tuple[str, ...] = ()
    untransformed: Mapping[str, str] = field(default_factory=dict)
    divergence: Mapping[str, Divergence] = field(default_factory=dict)
    latencies: tuple[ShapeLatency, ...] = ()
    operators: tuple[OperatorRow, ...] = ()
    metric: str | None = None
    metric_before: float | None = None
    metric_after: float | None = None
    metric_drop: float | None = None
    outcomes: tuple[Outcome, ...] = ()
    pruning: PruningReport | None = None
    removal: RemovalReport | None = None
    parallel: ParallelReport | None = None
    slicing: SlicingReport | None = None
    tokens: TokensReport | None = None
    flips: Flips | None = None
    kept_float32: Mapping[str, str] = field(default_factory=dict)
    fallbacks: tuple[str, ...] = ()
    unmeasured: str = ""
    search: SearchReport | None = None
    weighed: Mapping[str, tuple[float, float] | None] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    weights: Mapping[str, float] = field(default_factory=dict)
    bounds: Mapping[str, float] = field(default_factory=dict)

    @property
    def drop(self) -> float | None:
        """Loss on the metric as a fraction of it, else of the outputs; None if not measured.

        Negative when the metric got better. Outputs with a bound of their own are left out, where
        there are others.
        """
        if self.metric_drop is not None:
            return self.metric_drop
        if not self.divergence:
            return None
        return drop_of_others(self.divergence, self.weights, self.bounds)

    @property
    def worst(self) -> float | None:
        """The same of all outputs."""
        if self.metric_drop is not None or not self.divergence:
            return self.metric_drop
        return worst_drop(self.divergence, self.weights)

    @property
    def speedup(self) -> float | None:
        """Median latency of the original over that of the result, at the first shape."""
        return self.latencies[0].speedup if self.latencies else None

    @property
    def average_bits(self) -> float:
        """Stored bits per weight over all sites, scales and zero points included."""
        weights = sum(row.weights for row in self.sites)
        return 8 * sum(row.bytes_after for row in self.sites) / max(weights, 1)

    @property
    def entropy(self) -> tuple[float, float] | None:
        """Of codes that no kernel reads: stored bits per weight, and the entropy of the codes."""
        rows = [(row, row.entropy_bytes) for row in self.sites if row.entropy_bytes is not None]
        weights = sum(row.weights for row, _ in rows)
        if not weights:
            return None
        stored = 8 * sum(row.bytes_after for row, _ in rows) / weights
        return stored, 8 * sum(best for _, best in rows) / weights

    @property
    def met(self) -> bool:
        """Whether every constraint is met."""
        return all(outcome.met for outcome in self.outcomes)

    def told(self) -> dict[str, str]:
        """Size, time, loss and whether bounds are met."""
        sizes = (self.source_bytes, self.output_bytes)
        metric = (self.metric_before, self.metric_after)
        return {
            "model": f"{self.source} -> {self.output}",
            "size": " -> ".join(map(size_text, sizes)) + f", {sizes[1] / max(sizes[0], 1):.3f}",
            "latency": "" if self.speedup is None else f"{1 / self.speedup:.3f} of the original",
            "drop": "" if self.drop is None else f"{self.drop:.5f}",
            self.metric or "metric": "" if None in metric else "{:.4f} -> {:.4f}".format(*metric),
            "missed": ", ".join(o.name for o in self.outcomes if not o.met),
            "data": self.data,
        }

    def with_measurements(self, **measured: Any) -> Report:
        """The report with the results of a verification."""
        return dataclasses.replace(self, **measured)

    def with_outcomes(self, outcomes: Sequence[Outcome]) -> Report:
        """The report with its constraints checked."""
        return dataclasses.replace(self, outcomes=tuple(outcomes))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; infinities become None."""
        document: dict[str, Any] = {}
        for name, value in dataclasses.asdict(self).items():
            document |= value if name == "weighed" else {name: value}
        document["outcomes"] = [{**dataclasses.asdict(o), "met": o.met} for o in self.outcomes]
        document |= {
            "drop": self.drop,
            "worst": self.worst,
            "speedup": self.speedup,
            "average_bits": self.average_bits,
            "onnxruntime": VERSION,
            "machine": platform.processor() or platform.machine(),
        }
        return finite(document)  # type: ignore[no-any-return]

    def to_json(self) -> str:
        """The report as JSON."""
        return json.dumps(self.to_dict(), indent=1)


def finite(value: Any) -> Any:
    """Plain data that JSON can hold: infinities and NaN become None."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
