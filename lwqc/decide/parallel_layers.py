"""Decides which adjacent residual branches read one stream, with the price of each pair."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

from lwqc.compile.decisions import ParallelDecision, ParallelStep
from lwqc.compile.gated_model import GatedModel
from lwqc.compile.run_times import run_ms
from lwqc.compile.steps.make_parallel import parallel_planned
from lwqc.compile.version import Version
from lwqc.decide.allocators.greedy import Step, greedy
from lwqc.decide.drop_layers import gated_session
from lwqc.decide.scores.branches.ablation import Ablation
from lwqc.errors import InputError
from lwqc.graph.adjacent import Adjacency, Pair, adjacent_pairs
from lwqc.graph.branch_kinds import KINDS, BranchTree, Kind, branch_tree
from lwqc.model.extensions import expected
from lwqc.passes.gate_parallel import GateParallel
from lwqc.plans.plan import ParallelPair, Plan, Source
from lwqc.runtime.measure import NOISE
from lwqc.runtime.stats.output_divergence import MEASURES, Measure

Units = Literal[Kind, "any"]
UNITS: tuple[Units, ...] = (*KINDS, "any")
Search = Literal["greedy", "once"]
SEARCHES: tuple[Search, ...] = get_args(Search)


@dataclass(frozen=True)
class ParallelOptions:
    """What to make parallel.

    count, share: how many pairs; one of the two. A share is of all pairs of the kind.
    kind: of both branches of a pair, or `any`.
    search: `greedy` measures all pairs that are left after each choice, `once` only at the start.
    measure: of the divergence, see `OutputDivergence`.
    max_divergence: pairs that would exceed it are not made parallel.
    faster: refuse the whole when it is not faster on this machine, where the target is timed here.
    """

    count: int | None = None
    share: float | None = None
    kind: Units = "any"
    search: Search = "greedy"
    measure: Measure = "js"
    max_divergence: float | None = None
    faster: bool = True
    recipe: str = ""


def choose_parallel(work: Version, options: ParallelOptions) -> ParallelDecision:
    """Decide which pairs read one stream. Nothing is rewritten yet.

    One session with gates measures every choice against the cached outputs of the original; the
    result, merged, is then timed against the original, where the target is timed here. Raises
    InputError when the model has no such pairs or too few, or options conflict. Source: arXiv
    2309.08414, where models are trained in this form; without training only pairs that barely
    diverge are worth it.
    """
    _check_options(options)
    pairs = _pairs(work, options.kind)
    count = _count(work, pairs, options)
    gated = GatedModel(work.model, GateParallel(pairs), gated_session)
    ablation = Ablation(gated.without, work.job.data.judge, options.measure, work.job.weights)
    curve = tuple(_curve(_steps(work, options, pairs, count, ablation), ablation, options))
    chosen = tuple(ParallelPair(first=a, second=b) for a, b in (step.pair for step in curve))
    plan = Plan(
        source=Source(), target=work.job.target.name, recipe=options.recipe, parallel=chosen
    )
    empty = plan.model_copy(update={"parallel": ()})
    short = ""
    if options.count is not None and len(chosen) < count:
        limit = options.max_divergence
        short = f"{len(chosen)} of {count}: the next would exceed a divergence of {limit:g}"
    decided = partial(ParallelDecision, curve=curve, pairs=len(pairs), measure=options.measure)
    if not chosen:
        note = f"every pair diverges by more than {options.max_divergence:g}"
        return decided(empty, note=note)
    if not options.faster or not work.job.timed:
        return decided(plan, note=short)
    before, after = run_ms(work, work.model, parallel_planned(work.model, chosen))
    if after * NOISE < before:
        return decided(plan, latency_ms=(before, after), note=short)
    note = f"{len(chosen)} parallel pairs are not faster: {after:.3f} ms, before {before:.3f} ms"
    return decided(empty, latency_ms=(before, after), note=note)


def _check_options(options: ParallelOptions) -> None:
    if (options.count is None) == (options.share is None):
        raise InputError("making branches parallel needs either a count or a share of the pairs")
    if options.count is not None and options.count < 1:
        raise InputError(f"{options.count} pairs to make parallel: at least one is needed")
    if options.share is not None and not 0 < options.share <= 1:
        raise InputError(f"a share of {options.share:g} of the pairs: must be above 0, at most 1")
    if options.max_divergence is not None and not options.max_divergence >= 0:
        raise InputError(f"max_divergence {options.max_divergence:g}: must not be negative")
    choices = (("kind", UNITS), ("search", SEARCHES), ("measure", MEASURES))
    for name, known in choices:
        given = getattr(options, name)
        if given not in known:
            raise InputError(f"{name} {given}: {expected(str(given), known)}")


def _pairs(work: Version, kind: Units) -> list[Pair]:
    tree = branch_tree(work.model.graph)
    adjacency = adjacent_pairs(tree)
    if not adjacency.pairs:
        reasons = [*adjacency.refused, *tree.refused]
        reason = f"; {reasons[0].name}: {reasons[0].reason}" if reasons else ""
        raise InputError(f"{work.name}: has no residual branches that could be parallel{reason}")
    kinds = {b.name: b.kind for b in tree.branches}
    pairs = [p for p in adjacency.pairs if kind == "any" or {kinds[p[0]], kinds[p[1]]} == {kind}]
    if not pairs:
        raise InputError(
            f"{work.name}: has no two {kind} branches in a row; {_summary(tree, adjacency)}"
        )
    return pairs


def _summary(tree: BranchTree, adjacency: Adjacency) -> str:
    found = [" and ".join(tree.by_name[n].kind for n in pair) for pair in adjacency.pairs]
    counts = ", ".join(f"{found.count(kinds)} {kinds}" for kinds in dict.fromkeys(found))
    return f"its adjacent pairs are {counts}"


def _count(work: Version, pairs: Sequence[Pair], options: ParallelOptions) -> int:
    wanted = options.count or max(1, round((options.share or 0) * len(pairs)))
    if wanted > len(pairs):
        kind = f"{options.kind} " if options.kind != "any" else ""
        raise InputError(
            f"{work.name}: {wanted} pairs of {kind}branches to make parallel; "
            f"there are {len(pairs)}"
        )
    return wanted


def _steps(
    work: Version,
    options: ParallelOptions,
    pairs: Sequence[Pair],
    count: int,
    ablation: Ablation,
) -> list[Step[Pair]]:
    if options.search == "greedy":
        report = work.job.report("making parallel")
        return list(greedy(pairs, lambda p: ablation(_seconds(p)), count, progress=report))
    scores = {pair: ablation(_seconds([pair])) for pair in pairs}
    return [Step(pair, scores[pair]) for pair in sorted(pairs, key=scores.__getitem__)[:count]]


def _curve(
    steps: Iterable[Step[Pair]], ablation: Ablation, options: ParallelOptions
) -> list[ParallelStep]:
    """Measure the steps one after the other, up to the first that costs too much."""
    curve: list[ParallelStep] = []
    for step in steps:
        divergence = ablation(_seconds([*(s.pair for s in curve), step.removed]))
        if options.max_divergence is not None and divergence > options.max_divergence:
            break
        curve.append(ParallelStep(step.removed, step.cost, divergence))
    return curve


def _seconds(pairs: Iterable[Pair]) -> list[str]:
    """The names of gates: a branch is the second of one pair at most."""
    return [second for _, second in pairs]
