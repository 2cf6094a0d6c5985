"""Fewer channels for what number formats leave of an allowed loss.

Layers that take over for channels are fitted to the data, which then shows a tenth of what other
inputs lose. So what may go is judged on inputs that are held back; and then fitted on all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache

from lwqc.backends.target import Lowered
from lwqc.compile.candidates import Candidate, evaluate, measured, with_formats
from lwqc.compile.reference import Reference
from lwqc.compile.steps.pruned_model import prune_model
from lwqc.compile.version import Version
from lwqc.decide import planning
from lwqc.decide.base import SECONDS, Base
from lwqc.decide.channels import Choice
from lwqc.decide.narrowed_entries import plan_here
from lwqc.decide.prune_options import PruneOptions
from lwqc.decide.site_order import smallest
from lwqc.errors import InputError, SessionError
from lwqc.model import io
from lwqc.model.limits import LimitError
from lwqc.plans.plan import Plan, Pruning
from lwqc.plans.recipe import Recipe
from lwqc.runtime.measure import NOISE
from lwqc.runtime.served import no_slower, overall, relative_times

Better = Callable[[Version, Lowered, Lowered], bool]  # (before, after)
_WORTH = 0.2  # of the allowed loss: where less is left, little can go
_SHARES = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)  # of the multiply-accumulates
_WIDTH = 8  # channels that kernels of a CPU take at once
_FEWER = 0.95  # of the bytes: what saves less is not worth what it loses
_HELD = "fewer channels: on inputs that are held back"
_FEWEST = f"{_HELD} the fewest that can go lose"
_TOGETHER = f"{_HELD} they and the formats together lose"
_LITTLE = "fewer channels: what they save is too little"
_TRIED = 2  # of the shares that hold in float: formats lose more on what is narrower


def narrowed(
    base: Base, plan: Plan, limit: float, recipe: Recipe, *, better: Better
) -> tuple[Base, Plan]:
    """The graph without the channels that the plan leaves room for within the limit, and its plan.

    Or both as they are, where no channel can go or that is not better.
    """

    before = cache(lambda: with_formats(base.work, plan))

    def pays(after: Lowered) -> bool:
        return better(base.work, before(), after)

    found = narrower(base.work, plan, limit, recipe.ranges, pays=pays)
    if found is None:
        return base, plan
    prune, small, candidate, lost = found
    if not pays(candidate.lowered):
        base.work.job.give_up(_LITTLE)
        return base, plan
    note = (
        f"channels went until inputs that were held back lost {lost:.2g} of the {limit:g} allowed"
    )
    return replace(base, work=small, prune=prune), candidate.plan.noted(note)


def faster(work: Version, before: Lowered, after: Lowered) -> bool:
    """Whether a model takes less time than another at every shape, by more than noise."""
    sessions = [work.job.load(lowered.model) for lowered in (before, after)]
    relative = relative_times(sessions, work.job.data.serve, SECONDS, 1, 1 / NOISE)[1]
    return no_slower(relative) and overall(relative) * NOISE < 1


def smaller(work: Version, before: Lowered, after: Lowered) -> bool:
    """Whether a model takes so many bytes less than another that it is worth a loss."""
    first, second = (io.serialized_bytes(lowered.model) for lowered in (before, after))
    return second < _FEWER * first


def narrower(
    work: Version,
    plan: Plan,
    limit: float,
    ranges: planning.RangeMethod,
    *,
    pays: Callable[[Lowered], bool] = lambda after: True,
) -> tuple[Pruning, Version, Candidate, float] | None:
    """The fewest channels with which the plan stays within the limit, or None.

    Channels go in the order of `obspa` from all layers; the plan's formats stay.

    work, plan: a graph, and formats for it. Returns what goes, the graph without it, what that is
    with the formats, all fitted on all data, and what its like lost that was fitted on a part, on
    the rest. None without enough real data, for models of more than a gigabyte, where no channel
    can go, and where what is fitted on a part does not pay.
    """
    apart = None if work.is_large else _held_back(work)
    if apart is None:
        return None
    try:
        for prune, lost in _held(apart, plan, limit, ranges, pays):
            small = _without(work, prune)
            found = planning.proven(small, plan_here(small, plan, ranges))
            if found is not None and found[0].drop <= limit:
                return prune, small, found[0], lost
    except SessionError as error:
        work.job.give_up(error)
    return None


def _held(
    apart: Version,
    plan: Plan,
    limit: float,
    ranges: planning.RangeMethod,
    pays: Callable[[Lowered], bool],
) -> Iterator[tuple[Pruning, float]]:
    """What may go, the most first, with the loss on what was held back."""
    room = limit - evaluate(apart, plan_here(apart, plan, ranges))[0].drop
    if room < _WORTH * limit:
        apart.job.give_up(
            f"{_HELD} formats alone leave {max(room, 0):.2g} of the {limit:g} allowed"
        )
        return
    options = PruneOptions(
        _SHARES[0],
        score="obs",
        normalise="output",
        per_cost=True,
        compensate="refit",
        round_to=max(_WIDTH, apart.job.target.width_multiple),
    )
    report = apart.job.report("fewer channels")
    report(0, len(_SHARES) + 1)
    try:
        choice = Choice(apart, options)
    except InputError as error:  # it has no channel that could go
        apart.job.give_up(error)
        return
    prunes = _prunes(choice)

    held: Version | None = None

    def holds(left: int) -> bool:
        nonlocal held
        report(min(len(lost), len(_SHARES)), len(_SHARES) + 1)
        small = _without(apart, prunes[-1 - left])
        lost.append(evaluate(small, planning.unchanged(small))[0].drop)
        if lost[-1] <= room:
            held = small  # each that holds is with fewer channels than the one before
        return lost[-1] <= room

    lost: list[float] = []
    least = smallest(0, len(prunes), len(prunes) - 1, holds)
    report(len(_SHARES) + 1, len(_SHARES) + 1)
    if lost and least == len(prunes):
        apart.job.give_up(f"{_FEWEST} {lost[0]:.2g}, and formats leave {room:.2g}")
    for prune in prunes[::-1][least : least + _TRIED]:
        small, held = _without(apart, prune) if held is None else held, None
        here = plan_here(small, plan, ranges)
        lowered = with_formats(small, here)
        if not pays(lowered):  # which is told sooner than what is lost
            apart.job.give_up(_LITTLE)
            return
        drop = measured(small, here, lowered, small.job.load(lowered.model)).drop
        if drop <= limit:
            yield prune, drop
        else:
            apart.job.give_up(f"{_TOGETHER} {drop:.2g} of the {limit:g} allowed")


def _prunes(choice: Choice) -> list[Pruning]:
    """What goes with each share, where that is more than with the one before."""
    found: list[Pruning] = []
    for share in _SHARES:
        prune = choice.of(share).plan.prune
        if prune is not None and prune.units and (not found or prune != found[-1]):
            found.append(prune)
    return found


def _held_back(work: Version) -> Version | None:
    """The version for a job in which some of the data is held back; None where it is too few.

    A metric of ours is on the data that is fitted to: there the outputs judge.
    """
    if work.job.data.fit.kind != "real":
        return None
    try:
        data = work.job.data.apart()
    except LimitError as error:  # of memory; nobody asked for all data at once
        work.job.give_up(error)
        return None
    if data is None:
        return None
    metric = work.job.metric
    job = replace(work.job, data=data, metric=None if metric is None or metric.ours else metric)
    known = work.original
    return replace(
        work.derived(work.model, floats=work.floats),
        job=job,
        original=Reference(
            known.model, known.name, job, None if job.metric is None else known.metric
        ),
    )


def _without(work: Version, prune: Pruning) -> Version:
    return work.derived(prune_model(work, prune).model, known=None, floats=work.floats)
