"""Decides which residual branches of a model go, with the price of each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import onnx_ir as ir

from lwqc.compile.decisions import DropDecision, DropStep
from lwqc.compile.gated_model import GatedModel
from lwqc.compile.version import Version
from lwqc.decide.accepted_channels import accepted_channels
from lwqc.decide.allocators.greedy import Step, greedy
from lwqc.decide.scores.branches.ablation import Ablation
from lwqc.decide.scores.branches.score import BranchFacts, branch_score
from lwqc.errors import InputError
from lwqc.graph.branch_kinds import KINDS, BranchTree, Kind, TypedBranch, branch_tree
from lwqc.model.extensions import BRANCH_SCORES, expected
from lwqc.plans.plan import Compensation, Plan, Pruning, RemovedBranch, Source
from lwqc.plans.recipe import TRIALS
from lwqc.runtime.session import Session, statistics_session
from lwqc.runtime.stats.output_divergence import MEASURES, Measure

Units = Literal[Kind, "any", "block"]
UNITS: tuple[Units, ...] = (*KINDS, "any", "block")
_GREEDY = frozenset({"ablation", "metric"})


@dataclass(frozen=True)
class DropOptions:
    """What to remove.

    count, share: how many units; one of the two, but for `accept`. A share is of all of the kind.
    kind: a kind of branch, `any`, or whole `block`s.
    score: `similarity` (the highest cosine of input and output goes first; `lim` is the same
        order), `angular`, `norm-ratio`, `void`, from one forward pass; `ablation` measures the
        divergence of the outputs for every unit that is left after each removal, `ablation-once`
        only at the start; `metric` is `ablation` by the user's metric; `accept` tries every unit
        once in the order of `similarity` and lets it go if what is lost stays within `max_drop` of
        the metric, or without one within `max_divergence`; with kind `any` first whole blocks, then
        single branches (AxFormer); `random`; or any other of `lwqc.decide.scores.branches.score`.
    measure: of the divergence, see `OutputDivergence`.
    keep_first, keep_last: units at the ends that stay.
    protect: share of the units, from the front, that the greedy scores spare until as many are
        removed (FinerCut's 0.4).
    max_divergence: removals that would exceed it are not made. max_drop: for `accept`, of the
    metric as a fraction of it; 0 lets go what does no harm.
    finer: for `accept`: heads and groups of hidden units of what is left are tried afterwards, see
        `accepted_channels`; with kind `any`, and where no number of branches is asked for.
    keep_signature: see `RemoveBranches`. compensate: see `lwqc.compile.steps.removed_branches`.
    """

    count: int | None = None
    share: float | None = None
    kind: Units = "any"
    score: str = "similarity"
    measure: Measure = "js"
    keep_first: int = 0
    keep_last: int = 0
    protect: float = 0.0
    max_divergence: float | None = None
    max_drop: float = 0.0
    finer: bool = False
    keep_signature: bool = False
    compensate: Compensation = "none"
    seed: int = 0
    recipe: str = ""


Unit = tuple[TypedBranch, ...]


def choose_branches(work: Version, options: DropOptions) -> DropDecision:
    """Decide which branches go. Nothing is removed yet.

    Raises InputError when the model has no such branches or too few, or options conflict.
    """
    _check_options(work, options)
    tree = branch_tree(work.model.graph)
    units = _units(work, tree, options.kind)
    count = _count(work, tree, units, options)
    candidates = units[options.keep_first : len(units) - options.keep_last]
    gated = GatedModel(work.model, _names(units), gated_session)
    ablation = Ablation(gated.without, work.job.data.judge, options.measure, work.job.weights)
    if options.score == "accept":
        chosen = _by_acceptance(work, options, tree, candidates, count, ablation)
    elif options.score in _GREEDY:
        chosen = _by_trial(work, options, candidates, count, ablation)
    else:
        chosen = _by_rank(_scores(work, options, units, ablation), candidates, count)
    curve = _curve(chosen, ablation, options)
    removed = tuple(
        RemovedBranch(
            name=name,
            kind=tree.by_name[name].kind,
            keep_signature=options.keep_signature,
            compensate=options.compensate,
        )
        for step in curve
        for name in step.branches
    )
    channels = _finer(work, options, removed)
    plan = Plan(
        source=Source(),
        target=work.job.target.name,
        recipe=options.recipe,
        remove=removed,
        prune=channels,
    )
    notes = _notes(options, count, len(chosen), len(curve), len(removed), finer=bool(channels))
    return DropDecision(plan, tuple(curve), len(units), options.measure, notes)


def gated_session(model: ir.Model) -> Session:
    """A session for many runs of a gated model."""
    return Session(model, label="gated model")


def _finer(work: Version, options: DropOptions, removed: Sequence[RemovedBranch]) -> Pruning | None:
    """Channels that go beside the branches."""
    all_asked = options.count is None and options.share is None and options.kind == "any"
    if not (options.finer and options.score == "accept" and all_asked):
        return None
    return accepted_channels(work, removed, _limit(work, options), options.measure)


def _limit(work: Version, options: DropOptions) -> float:
    """What `accept` may lose: of the metric, or in divergence where there is none."""
    return options.max_drop if work.job.metric is not None else (options.max_divergence or 0.0)


def _notes(
    options: DropOptions, wanted: int, chosen: int, done: int, branches: int, *, finer: bool
) -> tuple[str, ...]:
    """Why fewer units went than were asked for."""
    if done < chosen:
        limit = options.max_divergence
        return (f"{done} of {wanted} went: the next would exceed a divergence of {limit:g}",)
    if options.score == "accept":
        if not done and not finer:
            return ("nothing could go within what may be lost",)
        asked = options.count is not None or options.share is not None
        gone = done if options.kind != "any" else branches
        short = asked and gone < wanted
        return (f"{gone} of {wanted} went: the others cost too much",) if short else ()
    if done < wanted:
        return (f"{done} of {wanted} went: the others are protected",)
    return ()


def _check_options(work: Version, options: DropOptions) -> None:
    _check_amount(work, options)
    if options.count is not None and options.count < 1:
        raise InputError(f"{options.count} branches to remove: at least one must go")
    if options.share is not None and not 0 < options.share <= 1:
        raise InputError(f"a share of {options.share:g} to remove: must be above 0 and at most 1")
    choices = (
        ("kind", UNITS),
        ("score", [*BRANCH_SCORES.names(), *TRIALS]),
        ("measure", MEASURES),
        ("compensate", get_args(Compensation)),
    )
    for name, known in choices:
        given = getattr(options, name)
        if given not in known:
            raise InputError(f"{name} {given}: {expected(str(given), known)}")
    if options.protect and options.score not in _GREEDY:
        raise InputError(
            f"protect is for scores that measure again after each removal "
            f"({', '.join(sorted(_GREEDY))}), not for {options.score}"
        )
    if not 0 <= options.protect < 1:
        raise InputError(f"protect {options.protect:g}: must be a share from 0 to below 1")
    limit = options.max_divergence
    if limit is not None and not limit >= 0:
        raise InputError(f"max_divergence {limit:g}: must not be negative")
    if min(options.keep_first, options.keep_last) < 0:
        raise InputError("keep_first and keep_last must not be negative")
    if options.score == "metric" and work.job.metric is None:
        raise InputError("the score metric needs a metric")
    if options.compensate != "none" and not work.job.data.fit.given:
        raise InputError(f"compensate {options.compensate} looks at the data: give --data")


def _check_amount(work: Version, options: DropOptions) -> None:
    if options.count is not None and options.share is not None:
        raise InputError("removing branches needs either a count or a share of them, not both")
    if options.score == "accept":
        if work.job.metric is None and options.max_divergence is None:
            raise InputError("the score accept needs a metric or a largest divergence")
    elif options.count is None and options.share is None:
        raise InputError("removing branches needs either a count or a share of them")


def _units(work: Version, tree: BranchTree, kind: Units) -> list[Unit]:
    if not tree.branches:
        reason = f"; {tree.refused[0].name}: {tree.refused[0].reason}" if tree.refused else ""
        raise InputError(f"{work.name}: has no residual branch that could be removed{reason}")
    if kind == "block":
        return list(tree.blocks)
    units: list[Unit] = [(b,) for b in tree.branches if kind in ("any", b.kind)]
    if not units:
        raise InputError(f"{work.name}: has no {kind} branch; it has {_summary(tree)}")
    return units


def _summary(tree: BranchTree) -> str:
    counts = ", ".join(f"{tree.count(k)} {k}" for k in KINDS if tree.count(k))
    return f"{counts} branches in {len(tree.blocks)} blocks"


def _count(work: Version, tree: BranchTree, units: Sequence[Unit], options: DropOptions) -> int:
    available = max(0, len(units) - options.keep_first - options.keep_last)
    if options.count is None and options.share is None:
        return available
    wanted = options.count or max(1, round((options.share or 0) * len(units)))
    if wanted > available:
        what = "blocks" if options.kind == "block" else "branches"
        kept = f", of which {len(units) - available} are to stay" if available < len(units) else ""
        kind = f"{options.kind} " if options.kind in KINDS else ""
        raise InputError(
            f"{work.name}: {wanted} {kind}{what} to remove; there are {len(units)}{kept} "
            f"({_summary(tree)})"
        )
    return wanted


def _scores(
    work: Version, options: DropOptions, units: Sequence[Unit], ablation: Ablation
) -> dict[Unit, float]:
    """Importance of each unit: the lowest goes first."""
    by_name = {unit[0].name: unit for unit in units}
    facts = BranchFacts(
        work.model,
        {name: [b.branch for b in unit] for name, unit in by_name.items()},
        work.job.data.fit,
        statistics_session,
        lambda name: ablation(_names([by_name[name]])),
        options.seed,
    )
    with BRANCH_SCORES.running(options.score):
        told = branch_score(options.score).importance(facts)
        found = {name: float(value) for name, value in told.items()}
    if missing := sorted(set(by_name) - set(found)):
        raise InputError(f"{BRANCH_SCORES.told(options.score)}: gave no number for {missing[0]}")
    if strange := [name for name in by_name if math.isnan(found[name])]:
        raise InputError(f"{BRANCH_SCORES.told(options.score)}: gave NaN for {strange[0]}")
    return {unit: found[name] for name, unit in by_name.items()}


def _by_rank(scores: dict[Unit, float], candidates: Sequence[Unit], count: int) -> list[Step[Unit]]:
    order = sorted(candidates, key=scores.__getitem__)
    return [Step(unit, scores[unit]) for unit in order[:count]]


def _by_trial(
    work: Version,
    options: DropOptions,
    candidates: Sequence[Unit],
    count: int,
    ablation: Ablation,
) -> list[Step[Unit]]:
    by_metric = options.score == "metric"
    loss = _metric_loss(work, candidates) if by_metric else _divergence_loss(ablation)
    spared = int(options.protect * len(candidates))
    steps = greedy(
        candidates,
        loss,
        count,
        protected=candidates[:spared],
        readmit_after=spared + 1 if spared else None,
        progress=work.job.report("removing"),
    )
    return list(steps)


def _by_acceptance(
    work: Version,
    options: DropOptions,
    tree: BranchTree,
    candidates: Sequence[Unit],
    count: int,
    ablation: Ablation,
) -> list[Step[Unit]]:
    """Coarse to fine: a unit goes if what is lost with all that went before stays allowed."""
    allowed = {b for unit in candidates for b in unit}
    by_metric, limit = work.job.metric is not None, _limit(work, options)
    loss = _metric_loss(work, candidates) if by_metric else _divergence_loss(ablation)
    order = _scores(work, replace(options, score="similarity"), candidates, ablation)
    trials = sorted(candidates, key=order.__getitem__)
    if options.kind == "any":
        blocks = [unit for unit in tree.blocks if len(unit) > 1 and allowed.issuperset(unit)]
        ranks = _scores(work, replace(options, score="similarity"), blocks, ablation)
        trials = [*sorted(blocks, key=ranks.__getitem__), *trials]
    report = work.job.report("removing")
    steps: list[Step[Unit]] = []
    gone: frozenset[TypedBranch] = frozenset()
    taken = 0
    for tried, unit in enumerate(trials, 1):
        report(tried, len(trials))
        size = len(unit) if options.kind == "any" else 1
        if gone.issuperset(unit) or taken + size > count:
            continue
        cost = loss(frozenset((b,) for b in gone.union(unit)))
        if cost <= limit:
            taken += size
            gone |= set(unit)
            steps.append(Step(unit, cost))
    return steps


def _divergence_loss(ablation: Ablation) -> Callable[[frozenset[Unit]], float]:
    return lambda removed: ablation(_names(removed))


def _metric_loss(work: Version, candidates: Sequence[Unit]) -> Callable[[frozenset[Unit]], float]:
    metric, reference = work.job.metric, work.original.metric
    assert metric is not None
    gated = GatedModel(work.model, _names(candidates), gated_session, every_output=True)
    return lambda removed: metric.drop(reference, metric(gated.without(_names(removed))))


def _curve(steps: Iterable[Step[Unit]], ablation: Ablation, options: DropOptions) -> list[DropStep]:
    """Measure the steps one after the other, up to the first that costs too much."""
    removed: list[str] = []
    curve: list[DropStep] = []
    for step in steps:
        removed += _names([step.removed])
        divergence = ablation(removed)
        if options.max_divergence is not None and divergence > options.max_divergence:
            break
        curve.append(DropStep(tuple(b.name for b in step.removed), step.cost, divergence))
    return curve


def _names(units: Iterable[Unit]) -> list[str]:
    return [b.name for unit in units for b in unit]
