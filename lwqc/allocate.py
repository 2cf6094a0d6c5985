"""Decides which site gets which number format."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

from lwqc import io, mixed, planning
from lwqc.backends.session import Session, time_runs
from lwqc.cleaned import cleaned, cleaning
from lwqc.errors import InputError
from lwqc.float_plan import choose_floats, with_floats
from lwqc.goals import Goals
from lwqc.importance import layer_importance
from lwqc.measure import medians_ms
from lwqc.plan import CleanUp, Plan, Source
from lwqc.profiles import with_profile
from lwqc.quant.methods import DATA_METHODS, Method
from lwqc.recipe import Recipe
from lwqc.sparse_plan import with_sparsity
from lwqc.timing import slow_sites
from lwqc.transforms import choose_transforms, version
from lwqc.workspace import Candidate, Workspace

DEFAULT_DROP = 0.01
_LATENCY_SECONDS = 1.5
_BACK_OFFS = 4


def allocate(work: Workspace, goals: Goals, recipe: Recipe) -> Plan:
    """The plan of a recipe that quantizes, or only cleans up. Raises InputError."""
    if recipe.clean:
        clean, left = cleaning(work, CleanUp(merge=recipe.merge))
        plan = _allocated(cleaned(work, clean), goals, recipe)
        plan = plan.model_copy(
            update={"clean": clean, "untransformed": {**left, **plan.untransformed}}
        )
        return plan if recipe.allocator != "none" or not work.timed else _unless_slower(work, plan)
    return _allocated(work, goals, recipe)


def _unless_slower(work: Workspace, plan: Plan) -> Plan:
    """The plan, or one that does nothing where the result would be slower than the original."""
    assert plan.clean is not None
    done = cleaned(work, plan.clean).lower(plan).model
    sessions = [work.timed_reference, work.load(done)]
    before, after = medians_ms(sessions, work.search_batches[0])
    if after <= before:
        return plan
    reason = f"cleaned up, it runs in {after:.3g} ms, as it is in {before:.3g} ms"
    return plan.model_copy(
        update={"clean": None, "rewrites": (), "untransformed": {work.name: reason}}
    )


def _allocated(work: Workspace, goals: Goals, recipe: Recipe) -> Plan:
    if recipe.allocator == "none":
        plan = Plan(
            source=Source(name=work.name),
            target=work.target.name,
            recipe=recipe.name,
            rewrites=work.target.rewrites,
        )
        plan = with_sparsity(work, plan, recipe)
        return with_profile(work, with_floats(work, plan), {})
    if not work.analysis.sites:
        raise InputError(f"{work.name}: has no weight that could take a number format")
    if recipe.sequential and not work.data.given:
        raise InputError("sequential calibration looks at the data: give --data")
    found = choose_transforms(work, recipe)
    work = version(work, found.transforms, token_weights=recipe.token_weights)
    if work.target.floats != "float32":
        work.floats = choose_floats(work, work.target.floats)
    plan = _ALLOCATORS[recipe.allocator](work, goals, recipe)
    if recipe.allocator in ("uniform", "rank"):
        plan = planning.with_method(work, plan, recipe.method)
        plan = planning.with_side(work, plan, recipe.rank, recipe.columns)
    plan = _repaired(work, plan.model_copy(update={"sequential": recipe.sequential}))
    plan = with_profile(work, with_floats(work, plan), {})
    return plan.model_copy(
        update={
            "transforms": found.transforms,
            "untransformed": dict(found.left),
            "token_weights": recipe.token_weights,
        }
    )


def _uniform(work: Workspace, goals: Goals, recipe: Recipe) -> Plan:
    plan = planning.uniform(
        work,
        recipe.bits,
        recipe.activations,
        search=recipe.search,
        kind=recipe.kind,
        recipe=recipe.name,
    )
    return planning.calibrate(work, plan, recipe.ranges)


def _knapsack(work: Workspace, goals: Goals, recipe: Recipe) -> Plan:
    score: mixed.Score = "weights" if recipe.score == "weights" else "measured"
    method = _affordable(work, recipe)
    curves = mixed.choices(work, score, method)
    if goals.max_size is not None:
        budget = goals.max_size.resolve(work.float_bytes)
        if goals.avg_bits is not None:
            budget = min(budget, mixed.bytes_at(work, curves, goals.avg_bits))
        if mixed.least_bytes(work, curves, recipe.name) > budget:
            curves = mixed.choices(work, score, method, tiny=True)
        return mixed.within_bytes(work, curves, budget, recipe.name)
    if goals.avg_bits is not None:
        if mixed.least_average_bits(work, curves) > goals.avg_bits:
            curves = mixed.choices(work, score, method, tiny=True)
        return mixed.within_average_bits(work, curves, goals.avg_bits, recipe.name)
    limit = DEFAULT_DROP if goals.max_drop is None else goals.max_drop
    return _smallest_within(work, curves, limit, recipe)


def _smallest_within(
    work: Workspace, curves: Sequence[mixed.Choice], limit: float, recipe: Recipe
) -> Plan:
    """The smallest plan whose drop on all data is allowed.

    The search compares on a few batches; when all of them together show more, it aims lower.
    """
    aim = limit
    for _ in range(_BACK_OFFS):
        found = mixed.within_drop(
            work, curves, lambda plan: work.evaluate(plan)[0], aim, recipe.name
        )
        if _holds(work, *work.evaluate(found.plan), limit):
            break
        aim *= 0.7
    return found.plan


def _rank(work: Workspace, goals: Goals, recipe: Recipe) -> Plan:
    weights = sum(s.size for s in work.analysis.sites)
    kind: Literal["lim", "zd", "position"] = (
        recipe.score if recipe.score in ("zd", "position") else "lim"
    )
    importance = layer_importance(work, kind)
    budget: float | None
    if goals.max_size is not None:
        rest = io.serialized_bytes(work.model) - sum(s.float_bytes for s in work.analysis.sites)
        budget = goals.max_size.resolve(work.float_bytes) - rest
    elif goals.avg_bits is not None:
        budget = goals.avg_bits / 8 * weights
    elif kind == "position":
        budget = None
    else:
        raise InputError(f"recipe {recipe.name} needs a budget: --max-size or --avg-bits")
    return mixed.ranked(
        work, importance, budget, low=recipe.low, high=recipe.high, recipe=recipe.name
    )


def _affordable(work: Workspace, recipe: Recipe) -> Method:
    """The recipe's method, or rounding to nearest where it would look at made-up data."""
    needs_data = recipe.method in DATA_METHODS and not work.data.given
    return "rtn" if needs_data else recipe.method


def _bisect(work: Workspace, goals: Goals, recipe: Recipe) -> Plan:
    importance = mixed.augmented_sensitivity(work)
    if goals.wants_size:
        raise InputError(f"recipe {recipe.name} takes --max-drop, not a size")
    limit = DEFAULT_DROP if goals.max_drop is None else goals.max_drop
    method = _affordable(work, recipe)
    return mixed.bisected(
        work, importance, limit, low=recipe.low, high=recipe.high, method=method, recipe=recipe.name
    )


def _auto(work: Workspace, goals: Goals, recipe: Recipe) -> Plan:
    if goals.wants_size or (goals.max_drop is not None and goals.max_latency is None):
        return _knapsack(work, goals, recipe)
    return _fastest(work, goals, recipe).plan


def _fastest(work: Workspace, goals: Goals, recipe: Recipe) -> Candidate:
    """The fastest of a few plans whose drop is allowed; the original's graph if none is faster.

    Where the target cannot be timed, the first of them: targets list the most promising first.
    """
    limit = DEFAULT_DROP if goals.max_drop is None else goals.max_drop
    found: list[tuple[Candidate, Session]] = []
    plans = list(_speed_plans(work, recipe))
    report = work.report("candidates")
    for done, plan in enumerate(plans):
        candidate, session = work.evaluate(_repaired(work, plan))
        if candidate.drop > limit:
            candidate, session = _relaxed(work, candidate, session, limit)
        if candidate.drop <= limit:
            found.append((candidate, session))
        report(done + 1, len(plans))
    if not work.timed:
        return found[0][0] if found else _unslowed(work, recipe)
    sessions = [work.timed_reference, *(session for _, session in found)]
    times = time_runs(sessions, work.search_batches[0], seconds=_LATENCY_SECONDS)
    medians = [sorted(t)[len(t) // 2] for t in times]
    order = sorted(range(len(found)), key=lambda i: medians[i + 1])
    for i in order:
        if medians[i + 1] <= medians[0] and _holds(work, *found[i], limit):
            return found[i][0]
    return _unslowed(work, recipe)


def _holds(work: Workspace, candidate: Candidate, session: Session, limit: float) -> bool:
    """Whether the drop is allowed on all data; a metric was already taken on all of its own."""
    drop = candidate.drop if work.metric is not None else work.full_drop(session)
    return drop <= limit


def _speed_plans(work: Workspace, recipe: Recipe) -> Iterable[Plan]:
    """Plans worth timing, the least intrusive last. Static ones need real data."""
    for kind in work.target.speed:
        if kind == "static" and work.data.kind != "real":
            continue
        plan = planning.uniform(work, 8, kind, recipe=recipe.name)
        if work.timed_reference is work.reference:  # sites are timed in sessions of the CPU
            plan = planning.without(plan, slow_sites(work, plan))
        yield planning.calibrate(work, plan, recipe.ranges)


def _relaxed(
    work: Workspace, candidate: Candidate, session: Session, limit: float
) -> tuple[Candidate, Session]:
    """Leave the activations of the most sensitive sites float until the drop is allowed.

    Sites are ordered by what their own 8-bit activation costs; bisection over that order.
    """
    plan = candidate.plan
    integer = [n for n, e in plan.quantize.items() if e.activation != "none"]
    order = planning.by_activation_error(work, plan, integer)
    low, high = 0, len(order)
    while low < high:
        middle = (low + high) // 2
        trial, loaded = work.evaluate(planning.weight_only(work, plan, order[: middle + 1]))
        if trial.drop <= limit:
            candidate, session, high = trial, loaded, middle
        else:
            low = middle + 1
    return candidate, session


def _unslowed(work: Workspace, recipe: Recipe) -> Candidate:
    """Smaller but not slower: weights that the runtime unpacks at load, kernels as they were."""
    plan = planning.folded(work, recipe.name)
    return work.evaluate(plan)[0]


_ALLOCATORS: Mapping[str, Callable[[Workspace, Goals, Recipe], Plan]] = {
    "auto": _auto,
    "uniform": _uniform,
    "knapsack": _knapsack,
    "rank": _rank,
    "bisect": _bisect,
}


def _repaired(work: Workspace, plan: Plan) -> Plan:
    """The plan without sites for which the runtime does not choose the expected kernel."""
    if work.skip_checks:
        return plan
    trial = planning.nearest(plan) if plan.sequential else plan  # those codes are set later
    wrong = work.target.misplaced(work.lower(trial))
    return planning.without(plan, wrong) if wrong else plan
