"""The fastest plan that this machine can be shown to run, within an allowed loss.

Everything is measured: the float graph as it is and cleaned up, the forms of each class of sites,
then whole graphs, at every shape that the model will serve.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

from lwqc.compile.candidates import holds, with_formats
from lwqc.compile.timing import relative_time, site_times, slow_sites, timed_sites
from lwqc.compile.version import Version
from lwqc.decide import planning
from lwqc.decide.base import SECONDS, Base, cleaned_base, float_base, wanted
from lwqc.decide.safest import holding, stored
from lwqc.decide.trials import GLANCE, Trial, Trials
from lwqc.plans.plan import Plan
from lwqc.plans.recipe import Recipe
from lwqc.quant.methods import DATA_METHODS
from lwqc.runtime.measure import NOISE
from lwqc.runtime.served import relative_times
from lwqc.runtime.timing_cache import Pair

_FINALISTS = 2
_IN_FRONT = 3  # convolutions that may stay float though those behind them do not
# Times as long as the quickest form: fewer bits may win on the whole, where weights are read from
# further away than in a session of one site.
_NEAR = 1.5
_FAR = 2.5  # the same of plans whose sites run differently on the whole, beside each other


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
    plans, trials = _distinct(_plans(base.work, recipe)), Trials(work, limit, recipe)
    report = work.job.report("candidates")
    found: list[Trial] = []
    for done, plan in enumerate(plans):
        report(done, len(plans))
        for trial in trials.loaded(base, plan):
            found += trials.with_fewer_islands(trial)
    report(len(plans), len(plans))
    ranked = trials.ranked(found, GLANCE, _FINALISTS)
    found.clear()  # each has a session with all weights
    if work.job.timed:
        ranked = _finalists(trials, base, ranked)
    for trial, candidate in trials.holding(ranked, SECONDS):
        if holds(work, candidate, trial.session, limit):
            kept = stored(trial.base.work, trial.plan, limit, recipe.method)
            return trial.base, _with_fast_bodies(trial.base.work, kept)
    return safest(work, base, limit, recipe)


def _finalists(trials: Trials, base: Base, ranked: Sequence[Trial]) -> list[Trial]:
    """The fastest that holds, the next one, and variants of the fastest, timed for longer."""
    report = trials.work.job.report("finalists")
    report(0, 3)
    first = next((trial for trial, _ in trials.holding(ranked, GLANCE)), None)
    if first is None:
        return []
    others = [t for t in ranked if t.time > first.time][: _FINALISTS - 1]
    report(1, 3)
    others += _later_start(trials, first)
    if base.clean is not None:
        others += _merged(trials, first.plan)
    report(2, 3)
    return trials.ranked([first, *others], SECONDS, 1)


def safest(work: Version, base: Base, limit: float, recipe: Recipe) -> tuple[Base, Plan]:
    """What holds where nothing faster does: weights that are only stored in 8 bits, or none.

    Of the graph cleaned up, else of the graph as it is. Raises nothing where not even that holds,
    as for a model whose outputs are random: what is saved is measured again.
    """
    as_it_is = Base(work).ready()
    for one in (base, as_it_is):
        plan = holding(one.work, limit, recipe.name, recipe.method)
        if plan is not None:
            return one, _with_fast_bodies(one.work, plan)
    plan = planning.unchanged(as_it_is.work, recipe.name)
    return as_it_is, plan.model_copy(update={"rewrites": ()})


def _with_fast_bodies(work: Version, plan: Plan) -> Plan:
    """The plan without weights that bodies of loops read, where the whole is slower with them.

    They come from the outer graph then, and the runtime chooses kernels in a body by what is stored
    there. Elsewhere weights that become float at load run the same kernels.
    """
    inside = [s.name for s in work.analysis.sites if s.in_body and s.name in plan.quantize]
    if not inside or not work.job.timed:
        return plan
    session = work.job.load(with_formats(work, plan).model)
    sessions = [work.begun.timed_session, session]
    relative = relative_times(sessions, work.job.data.serve, SECONDS, 1, NOISE)[1]
    if max(relative) <= NOISE:
        return plan
    reason = f"in a body, where the whole takes {max(relative):.2f} times as long with it"
    return planning.without(plan, dict.fromkeys(inside, reason))


def _merged(trials: Trials, best: Plan) -> list[Trial]:
    """The same kind of plan on the graph in which layers are merged that read one value."""
    work, recipe = trials.work, trials.recipe
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
    return [trial for plan in plans for trial in trials.loaded(merged, plan)]


def _later_start(trials: Trials, best: Trial) -> list[Trial]:
    """The plan with its first one, two and three 8-bit convolutions on the float kernel instead.

    8 bits gain least on large pictures of few channels, and in front of all others leaving them out
    takes no further conversions.
    """
    work, entries = best.base.work, best.plan.quantize
    static = [
        s.name
        for s in work.analysis.sites
        if s.op == "Conv" and s.name in entries and entries[s.name].activation == "static"
    ]
    return [
        trial
        for count in range(1, min(_IN_FRONT + 1, len(static)))
        for trial in trials.loaded(
            best.base, planning.weight_only(work, best.plan, static[:count]), mend=False
        )
    ]


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
    least = min((_together(known, times) for known in times if known), default=math.inf)
    for plan, known in zip(plans, times, strict=True):
        # Far behind alone, it is not in front on the whole; what it would be needed for where the
        # others lose too much, `_relaxed` makes of them.
        if not known or _together(known, times) < _FAR * least:
            yield from _whole_and_quick(work, plan, known, recipe)
    mixed = _quickest(work, plans, times)
    if mixed is not None:
        yield planning.calibrate(work, mixed, recipe.ranges)
    if not real:
        return
    few = _uniform(work, 4, "dynamic", recipe)
    times_few = site_times(work, few)
    if times_few and _together(times_few, [*times, times_few]) < _NEAR * least:
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


def _together(
    times: Mapping[str, Sequence[Pair]], others: Sequence[Mapping[str, Sequence[Pair]]]
) -> float:
    """Time of all sites in their form over that in float, over all shapes.

    others: the times of all plans that are compared. A site that only others have a form for runs
    in float: a plan of one fast site is no faster than one of many.
    """
    floats = {name: pairs for known in others for name, pairs in known.items()}
    in_float = {n: [(before, before) for before, _ in pairs] for n, pairs in floats.items()}
    shapes = zip(*{**in_float, **times}.values(), strict=True)
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


def never_slower(work: Version, plan: Plan) -> Plan:
    """A plan that only cleans up, or nothing where the result would be slower than the original."""
    if plan.clean is None:
        return plan
    base = float_base(work, plan.clean)
    if base.clean is not None:
        return plan
    return plan.model_copy(update={"clean": None, "rewrites": (), "untransformed": dict(base.left)})
