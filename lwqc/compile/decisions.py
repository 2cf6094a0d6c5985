"""What was decided about branches, with its price: for the report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lwqc.graph.adjacent import Pair
from lwqc.plans.plan import Plan, ReducedTokens
from lwqc.runtime.stats.output_divergence import Measure


@dataclass(frozen=True)
class DropStep:
    """One removal. branches: of the unit. score: by which it was chosen, higher stays longer.

    divergence: of the outputs with everything removed so far.
    """

    branches: tuple[str, ...]
    score: float
    divergence: float


@dataclass(frozen=True)
class DropDecision:
    """A plan that removes branches, and the price of each removal in their order.

    units: how many there were to choose from. measure: of the divergences. notes: for the user.
    """

    plan: Plan
    curve: tuple[DropStep, ...]
    units: int
    measure: Measure = "js"
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ParallelStep:
    """One pair. score: by which it was chosen. divergence: with all pairs chosen so far."""

    pair: Pair
    score: float
    divergence: float


@dataclass(frozen=True)
class ParallelDecision:
    """A plan that makes branches parallel, and the price of each pair in their order.

    pairs: how many there were to choose from. latency_ms: medians of the original and of the
    rewritten model, where they were taken. note: why the plan is empty or short,
    or "". measure: of the divergences.
    """

    plan: Plan
    curve: tuple[ParallelStep, ...]
    pairs: int
    latency_ms: tuple[float, float] | None = None
    note: str = ""
    measure: Measure = "js"


@dataclass(frozen=True)
class TokenDecision:
    """How many tokens a model goes on with, and the price of each step in their order.

    divergences: of the outputs with all steps up to each. saved: share of the products behind the
    first attention that goes. left: attention behind which no tokens can go, and why. measure: of
    the divergences.
    """

    tokens: tuple[ReducedTokens, ...]
    divergences: tuple[float, ...]
    saved: float
    left: Mapping[str, str] = field(default_factory=dict)
    measure: Measure = "js"


@dataclass(frozen=True)
class Price:
    """What a model takes. macs: of the first feeds. latency_ms: of a run; None where not timed."""

    size_bytes: int
    macs: int
    latency_ms: float | None = None


@dataclass(frozen=True)
class SliceDecision:
    """A plan that slices streams, and the prices of the model before and after.

    note: why the plan is empty, "" where it is not. left: streams that stay, and why.
    """

    plan: Plan
    before: Price
    after: Price
    note: str = ""
    left: Mapping[str, str] = field(default_factory=dict)
