"""The fastest plan that this machine can be shown to run, within an allowed loss.

Everything is measured: the float graph as it is and cleaned up, the forms of each class of sites,
then whole graphs, at every shape that the model will serve.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from lwqc.compile.candidates import Candidate, evaluate, holds, known_drop
from lwqc.compile.timing import relative_time, site_times, slow_sites, timed_sites
from lwqc.compile.version import Version
from lwqc.decide import planning
from lwqc.decide.base import SECONDS, Base, cleaned_base, float_base, wanted
from lwqc.decide.islands import islands
from lwqc.decide.safest import holding, stored, with_room
from lwqc.decide.site_order import by_output_error, smallest
from lwqc.errors import SessionError
from lwqc.plans.plan import Plan
from lwqc.plans.recipe import Recipe
from lwqc.quant.methods import DATA_METHODS
from lwqc.runtime.measure import NOISE
from lwqc.runtime.served import no_slower, overall, relative_times
from lwqc.runtime.session import Session
from lwqc.runtime.timing_cache import Pair

_GLANCE = 0.3  # seconds of timing per model and shape, at first
_FINALISTS = 2
_IN_FRONT = 3  # convolutions that may stay float though those behind them do not
# Times as long as the quickest form: fewer bits may win on the whole, where weights are read from
# further away than in a session of one site.
_NEAR = 1.5
_FAR = 2.5  # the same of plans whose sites run differently on the whole, beside each other


@dataclass(frozen=True)
class _Trial:
    base: Base
    candidate: Candidate
    session: Session


def fastest(work: Version, limit: float, recipe: Recipe) -> tuple[Base, Plan]:
    """The fastest of a few plans whose drop is allowed; the float graph if none is faster.

    Returns the graph that is lowered and the plan for that.

    limit: the largest drop. A result is at no shape slower than the original. Where the target
    cannot be timed, the first that holds: targets list the most promising first.
    """
    work.job.report("cleaning up")(0, 1)
    base = float_base(work, wanted(work, merge=False), NOISE) if recipe.clean else Base(work)
    base = base.ready()
    work.job.report("timing sites")(0, 1)
    plans = _distinct(_plans(base.work, recipe))
    report, last = work.job.report("candidates"), work.job.report("finalists")
    trials = []
    for done, plan in enumerate(plans):
        report(done, len(plans))
        for trial in _within(base, plan, limit, recipe):
            trials += _with_fewer_islands(trial, limit, recipe)
    report(len(plans), len(plans))
    if not work.job.timed:
        for trial in trials:
            if holds(work, trial.candidate, trial.session, limit):
                return _whole(trial, limit, recipe)
        return safest(work, base, limit, recipe)
    last(0, 4)
    best = _ranked(work, trials, _GLANCE, _FINALISTS)[:_FINALISTS]
    if best:
        first = best[0].candidate.plan
        last(1, 4)
        best += _later_start(base, first, limit, recipe)
        if base.clean is not None:
            last(2, 4)
            best += _merged(work, first, limit, recipe)
    last(3, 4)
    for trial in _ranked(work, best, SECONDS, 1):
        if holds(work, trial.candidate, trial.session, limit):
            return _whole(trial, limit, recipe)
    return safest(work, base, limit, recipe)


def _whole(trial: _Trial, limit: float, recipe: Recipe) -> tuple[Base, Plan]:
    """The trial's plan, with small files for weights that stay float."""
    return trial.base, stored(trial.base.work, trial.candidate.plan, limit, recipe.method)


def safest(work: Version, base: Base, limit: float, recipe: Recipe) -> tuple[Base, Plan]:
    """What holds where nothing faster does: weights that are only stored in 8 bits, or none.

    Of the graph cleaned up, else of the graph as it is. Raises nothing where not even that holds,
    as for a model whose outputs are random: what is saved is measured again.
    """
    as_it_is = Base(work).ready()
    for one in (base, as_it_is):
        plan = holding(one.work, limit, recipe.name, recipe.method)
        if plan is not None:
            return one, plan
    plan = planning.unchanged(as_it_is.work, recipe.name)
    return as_it_is, plan.model_copy(update={"rewrites": ()})


def _within(
    base: Base, plan: Plan, limit: float, recipe: Recipe, *, mend: bool = True
) -> list[_Trial]:
    """The plan, or what of it the allowed drop leaves; nothing where that is not enough.

    Nor where the runtime does not load or run it, or dies of it: that is a note. mend: whether a
    plan that loses too much is made to lose less.
    """
    work = base.work
    try:
        found = planning.proven(work, plan) if plan.quantize else None
        if found is None:
            return []
        candidate, session = found
        if mend and candidate.drop > limit and not math.isinf(candidate.drop):
            candidate, session = _fitted_better(work, candidate, session, recipe)
        if mend and candidate.drop > limit:
            candidate, session = _relaxed(work, candidate, session, limit)
    except SessionError as error:
        work.job.give_up(error)
        return []
    held = candidate.drop <= with_room(candidate.plan, limit)
    return [_Trial(base, candidate, session)] if held else []


def _fitted_better(
    work: Version, candidate: Candidate, session: Session, recipe: Recipe
) -> tuple[Candidate, Session]:
    """Finer scales, and all codes chosen by the recipe's method, where that loses less.

    At 8 bits it takes most of the error of the weights away, which is all that a detector can bear.
    The method needs real data.
    """
    if work.is_large:
        return candidate, session
    plan = planning.finer(work, candidate.plan)
    if recipe.method in DATA_METHODS and work.job.data.fit.kind == "real":
        plan = planning.with_method(work, plan, recipe.method)
    if plan == candidate.plan:
        return candidate, session
    fitted, loaded = evaluate(work, plan)
    return (fitted, loaded) if fitted.drop < candidate.drop else (candidate, session)


def _ranked(work: Version, trials: Sequence[_Trial], seconds: float, keep: int) -> list[_Trial]:
    """Those that are no slower than the original, the fastest first; `keep` of them matter."""
    sessions = [work.begun.timed_session, *(t.session for t in trials)]
    relative = relative_times(sessions, work.job.data.serve, seconds, keep)[1:]
    order = sorted(range(len(trials)), key=lambda i: overall(relative[i]))
    return [trials[i] for i in order if no_slower(relative[i])]


def _merged(work: Version, best: Plan, limit: float, recipe: Recipe) -> list[_Trial]:
    """The same kind of plan on the graph in which layers are merged that read one value."""
    merged = cleaned_base(work, wanted(work, merge=True)).ready()
    if merged.clean is None or "merge-parallel" not in merged.clean.changes:
        return []
    entries = best.quantize.values()
    whole = work.job.target.integer_bits  # 7 where that is what an 8-bit kernel takes
    kinds = [
        (8 if e.weight.bits == whole else e.weight.bits, e.activation)
        for e in entries
        if e.activation != "none"
    ]
    plan = (
        _uniform(merged.work, *max(sorted(set(kinds)), key=kinds.count), recipe)
        if kinds
        else _uniform(merged.work, 8, "none", recipe)
    )
    plans = _whole_and_quick(merged.work, plan, site_times(merged.work, plan), recipe)
    return [trial for plan in plans for trial in _within(merged, plan, limit, recipe)]


def _later_start(base: Base, best: Plan, limit: float, recipe: Recipe) -> list[_Trial]:
    """The plan with its first one, two and three 8-bit convolutions on the float kernel instead.

    8 bits gain least on large pictures of few channels, and in front of all others leaving them out
    takes no further conversions.
    """
    entries = best.quantize
    static = [
        s.name
        for s in base.work.analysis.sites
        if s.op == "Conv" and s.name in entries and entries[s.name].activation == "static"
    ]
    trials: list[_Trial] = []
    for count in range(1, min(_IN_FRONT + 1, len(static))):
        plan = planning.weight_only(base.work, best, static[:count])
        trials += _within(base, plan, limit, recipe)
    return trials


def _with_fewer_islands(trial: _Trial, limit: float, recipe: Recipe) -> list[_Trial]:
    """The trial, and with those 8-bit convolutions in float that are not worth their conversions.

    At a glance only the fastest are kept, as each is a session with all weights.
    """
    work, plan = trial.base.work, trial.candidate.plan
    if not (work.job.timed and work.job.runs_here):
        return [trial]
    fewer = [planning.weight_only(work, plan, sorted(left)) for left in islands(work, plan)]
    found = [t for one in fewer for t in _within(trial.base, one, limit, recipe, mend=False)]
    if not found:
        return [trial]
    return _ranked(work, [trial, *found], _GLANCE, _FINALISTS)[:_FINALISTS]


def _uniform(work: Version, bits: int, kind: planning.Activations, recipe: Recipe) -> Plan:
    """These bits where they have a kernel of their own; unpacked weights keep 8, at equal speed."""
    plan = planning.uniform(work, bits, kind, recipe=recipe.name)
    if bits == 8:
        return plan
    wide = planning.uniform(work, 8, "none", recipe=recipe.name)
    own = {s.name: plan.quantize[s.name] for s in timed_sites(work, plan)}
    quantize = {**wide.quantize, **own}
    kept = {n: r for n, r in {**plan.kept_float, **wide.kept_float}.items() if n not in quantize}
    return plan.model_copy(update={"quantize": quantize, "kept_float": kept})


def _whole_and_quick(
    work: Version, plan: Plan, times: Mapping[str, Sequence[Pair]], recipe: Recipe
) -> Iterator[Plan]:
    """The plan, and what of it is faster than float where that is less."""
    slow = slow_sites(work, plan, times)
    if slow:
        # Alone they are slow by a little, yet conversions beside float ones cost as well.
        yield _fitted(work, planning.calibrate(work, plan, recipe.ranges), recipe)
    left = planning.without(plan, slow)
    if left.quantize and (slow or left.quantize == plan.quantize):
        yield _fitted(work, planning.calibrate(work, left, recipe.ranges), recipe)


def _plans(work: Version, recipe: Recipe) -> Iterator[Plan]:
    """Plans worth timing on the whole. Static ranges and 4 bits need real data."""
    real = work.job.data.fit.kind == "real"
    kinds = [kind for kind in work.job.target.speed if real or kind != "static"]
    plans = [_uniform(work, 8, kind, recipe) for kind in kinds]
    if not (work.job.timed and work.job.runs_here):
        yield from (planning.calibrate(work, plan, recipe.ranges) for plan in plans)
        return
    times = [site_times(work, plan) for plan in plans]
    least = min(map(_together, filter(None, times)), default=math.inf)
    for plan, known in zip(plans, times, strict=True):
        # Far behind alone, it is not in front on the whole; what it would be needed for where the
        # others lose too much, `_relaxed` makes of them.
        if not known or _together(known) < _FAR * least:
            yield from _whole_and_quick(work, plan, known, recipe)
    mixed = _quickest(work, plans, times)
    if mixed is not None:
        yield planning.calibrate(work, mixed, recipe.ranges)
    if not real:
        return
    few = _uniform(work, 4, "dynamic", recipe)
    times_few = site_times(work, few)
    if times_few and _together(times_few) < _NEAR * min(
        map(_together, filter(None, times)), default=math.inf
    ):
        yield from _whole_and_quick(work, few, times_few, recipe)
    quick = _quickest(work, [*plans, few], [*times, times_few])
    if quick is not None and any(e.weight.bits == 4 for e in quick.quantize.values()):
        quick = planning.calibrate(work, quick, recipe.ranges)
        yield _fitted(work, quick, recipe)


def _distinct(plans: Iterable[Plan]) -> list[Plan]:
    """Each once: where no weight has a form of a kind, the plan is that of another kind."""
    found: dict[str, Plan] = {}
    for plan in plans:
        found.setdefault(plan.model_dump_json(include={"quantize", "activations"}), plan)
    return list(found.values())


def _together(times: Mapping[str, Sequence[Pair]]) -> float:
    """Time of all sites in their form over that in float, over all shapes."""
    shapes = zip(*times.values(), strict=True)
    return relative_time([(sum(p[0] for p in pairs), sum(p[1] for p in pairs)) for pairs in shapes])


def _fitted(work: Version, plan: Plan, recipe: Recipe) -> Plan:
    """The plan with the recipe's method where weights take few bits."""
    if recipe.method not in DATA_METHODS or not work.job.data.fit.given:
        return plan
    few = [n for n, e in plan.quantize.items() if e.weight.bits < work.job.target.integer_bits]
    return planning.with_method(work, plan, recipe.method, few)


def _quickest(
    work: Version, plans: Sequence[Plan], times: Sequence[Mapping[str, Sequence[Pair]]]
) -> Plan | None:
    """Each site's quickest form of several plans; None where one plan has them all."""
    entries, kept = dict(plans[0].quantize), dict(plans[0].kept_float)
    origins = set()
    for name in {n: None for known in times for n in known}:
        ratios = [relative_time(known[name]) if name in known else 1.0 for known in times]
        best = min(range(len(plans)), key=ratios.__getitem__)
        if name not in plans[best].quantize:
            continue
        entries[name] = plans[best].quantize[name]
        kept.pop(name, None)
        if name in plans[best].kept_float:  # what that form is less than
            kept[name] = plans[best].kept_float[name]
        if ratios[best] < 1:
            origins.add(best)
    if len(origins) < 2 and max(origins, default=0) < len(plans) - 1:
        return None
    plan = plans[0].model_copy(update={"quantize": entries, "kept_float": kept})
    return planning.without(plan, slow_sites(work, plan))


def _relaxed(
    work: Version, candidate: Candidate, session: Session, limit: float
) -> tuple[Candidate, Session]:
    """Leave the activations of the most sensitive sites float until the drop is allowed.

    In the order of what sites cost alone in 8 bits, as few of them as it takes.
    """
    plan = candidate.plan
    integer = [n for n, e in plan.quantize.items() if e.activation != "none"]
    if not integer:
        return candidate, session

    def without(sites: Sequence[str]) -> Plan:
        return planning.finer(work, planning.weight_only(work, plan, sites))

    floating = without(integer)
    known, most = known_drop(work, floating), with_room(floating, limit)
    if known is not None and known > most:
        return candidate, session
    trial, loaded = evaluate(work, floating)
    if trial.drop > most:
        return candidate, session  # without any 8-bit activation it is too much already
    order = by_output_error(work, plan, integer, candidate.drop - limit)
    best = trial, loaded

    def held(count: int) -> bool:
        nonlocal best  # each one that holds leaves fewer sites out than the one before
        trial, loaded = evaluate(work, without(order.sites[:count]))
        if trial.drop <= limit:
            best = trial, loaded
        return trial.drop <= limit

    smallest(1, len(integer), order.expected(limit), held)
    return best


def never_slower(work: Version, plan: Plan) -> Plan:
    """A plan that only cleans up, or nothing where the result would be slower than the original."""
    if plan.clean is None:
        return plan
    base = float_base(work, plan.clean)
    if base.clean is not None:
        return plan
    return plan.model_copy(update={"clean": None, "rewrites": (), "untransformed": dict(base.left)})
