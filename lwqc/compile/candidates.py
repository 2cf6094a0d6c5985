"""Plans that are tried: with their formats applied, loaded and measured."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field, replace
from functools import cached_property

from lwqc.backends.target import Lowered
from lwqc.compile.losses import comparable, compared, full_drop, judged_drop
from lwqc.compile.version import Version
from lwqc.errors import SessionError
from lwqc.model import io
from lwqc.plans.plan import Plan
from lwqc.runtime.measure import worst_drop
from lwqc.runtime.session import Session
from lwqc.runtime.stats.divergence import LossesMeter

_LOWERED = "what was lowered last"
_WORDS = {"source", "recipe", "kept_float", "untransformed", "notes"}
# What a version has behind it, and what no model depends on.
_BEHIND = {
    "version", "data", "tools", "budgets", "restore", "tokens", "opset", "clean", "remove",
    "parallel", "slice", "prune", "transforms",
}  # fmt: skip


@dataclass(frozen=True)
class Candidate:
    """A plan and what came of it.

    drop: of the metric if there is one, else of the outputs on the judging feeds. compared: the
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


def with_formats(work: Version, plan: Plan) -> Lowered:
    """The model with the formats of a plan, from the shared weights."""
    if plan.floats is None and work.floats is not None:
        plan = plan.model_copy(update={"floats": work.floats})
    lowered = work.job.target.lower(work.model, plan, work.weights)
    if not work.is_large:
        work.facts.put(_LOWERED, (_formats(plan), lowered))
    return lowered


def take_lowered(work: Version, plan: Plan) -> Lowered | None:
    """The last candidate of a version, where a plan asks for the same; it is given away."""
    key, lowered = work.facts.pop(_LOWERED, ("", None))
    return lowered if key == _formats(plan) else None


def _formats(plan: Plan) -> str:
    """What of a plan a target lowers; what the version came from and words are left out."""
    return plan.model_dump_json(exclude=_WORDS | _BEHIND)


def evaluate(work: Version, plan: Plan) -> tuple[Candidate, Session]:
    """Apply a plan's formats, load what comes of it and measure its loss."""
    lowered = with_formats(work, plan)
    session = work.job.load(lowered.model)
    return measured(work, plan, lowered, session), session


def measured(work: Version, plan: Plan, lowered: Lowered, session: Session) -> Candidate:
    """A candidate of a plan whose formats are applied and that is loaded."""
    found = None if work.job.metric is not None else compared(work, session)
    drop = (
        judged_drop(work, session)
        if found is None
        else worst_drop(found.result(), work.job.weights)
    )
    _drops(work)[_decisions(plan)] = drop
    return Candidate(plan, lowered, drop, found)


def known_drop(work: Version, plan: Plan, *, on_all: bool = False) -> float | None:
    """What a plan with the same formats was measured to lose; None where it was not.

    on_all: on all data, not on the judging feeds alone.
    """
    if on_all and work.job.metric is None and not work.job.data.judge_is_all:
        return None
    return _drops(work).get(_decisions(plan))


def tried(work: Version, plan: Plan) -> Candidate:
    """The candidate; the drop is infinite where the runtime does not load or run what comes of it.

    Why is kept in the job.
    """
    return _tried(work, plan, on_all=False)


def judged(work: Version, plan: Plan) -> Candidate:
    """The same, the drop being that on all data."""
    return _tried(work, plan, on_all=True)


def _tried(work: Version, plan: Plan, *, on_all: bool) -> Candidate:
    try:
        candidate, session = evaluate(work, plan)
        drop = _whole_drop(work, candidate, session) if on_all else candidate.drop
        return replace(candidate, drop=drop)
    except SessionError as error:
        work.job.give_up(error)
        return Candidate(plan, with_formats(work, plan), math.inf)


def holds(work: Version, candidate: Candidate, session: Session, limit: float) -> bool:
    """Whether a drop is allowed on all data; a metric was already taken on all of its own."""
    return _whole_drop(work, candidate, session) <= limit


def _whole_drop(work: Version, candidate: Candidate, session: Session) -> float:
    if work.job.metric is not None or work.job.data.judge_is_all:
        return candidate.drop
    if candidate.compared is None:
        return full_drop(work, session)
    meter = copy.deepcopy(candidate.compared)
    for feeds in work.job.data.behind_judge():
        meter.add(comparable(work, work.original.recorded(feeds)), session(feeds))
    return worst_drop(meter.result(), work.job.weights)


def _drops(work: Version) -> dict[str, float]:
    """Drops of plans on the judging feeds, by what of a plan makes a candidate."""
    return work.facts.get("drops", dict[str, float])


def _decisions(plan: Plan) -> str:
    """What of a plan makes a candidate of one model."""
    return plan.model_dump_json(exclude=_WORDS)
