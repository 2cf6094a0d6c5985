"""Decides which site gets which number format."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from lwqc.compile.cleaned import cleaned, cleaning
from lwqc.compile.steps.transforms import version
from lwqc.compile.workspace import Workspace
from lwqc.decide import mixed, planning
from lwqc.decide.fastest import Base, fastest, fused_base, never_slower
from lwqc.decide.float_plan import choose_floats, with_floats
from lwqc.decide.importance import layer_importance
from lwqc.decide.profiles import with_profile
from lwqc.decide.sparse_plan import with_sparsity
from lwqc.decide.transforms import choose_transforms
from lwqc.errors import InputError
from lwqc.model import io
from lwqc.plans.goals import DEFAULT_DROP, Goals
from lwqc.plans.plan import CleanUp, Plan
from lwqc.plans.recipe import Recipe
from lwqc.quant.methods import DATA_METHODS, Method

_LATENCY_SECONDS = 1.5
_BACK_OFFS = 4


def allocate(work: Workspace, goals: Goals, recipe: Recipe) -> Plan:
    """The plan of a recipe that quantizes, or only cleans up. Raises InputError."""
    if not work.analysis.sites and recipe.allocator != "none":
        raise InputError(
            f"{work.name}: has no weight that could take a number format{_why_not(work)}"
        )
    if recipe.allocator == "auto":
        return _auto(work, goals, recipe)
    if recipe.clean:
        clean, left = cleaning(work, CleanUp(fuse=work.target.fuses, merge=recipe.merge))
        plan = _allocated(cleaned(work, clean), goals, recipe)
        plan = plan.model_copy(
            update={"clean": clean, "untransformed": {**left, **plan.untransformed}}
        )
        return plan if recipe.allocator != "none" or not work.timed else never_slower(work, plan)
    return _allocated(work, goals, recipe)


def _why_not(work: Workspace) -> str:
    """What keeps the largest weight that is left out from taking a format."""
    largest = max(work.analysis.skipped, key=lambda s: s.size, default=None)
    if largest is None:
        return ""
    more = len(work.analysis.skipped) - 1
    return f"; {largest.name}: {largest.reason}{f' (and {more} more)' if more else ''}"


def _allocated(work: Workspace, goals: Goals, recipe: Recipe) -> Plan:
    if recipe.allocator == "none":
        plan = with_sparsity(work, planning.unchanged(work, recipe.name), recipe)
        return with_profile(work, with_floats(work, plan), {})
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
    plan = planning.repaired(work, plan.model_copy(update={"sequential": recipe.sequential}))
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
    if goals.max_size is not None:
        budget = goals.max_size.resolve(work.float_bytes)
        if goals.avg_bits is not None:
            budget = min(budget, mixed.bytes_at(work, goals.avg_bits))
        curves = mixed.choices(work, score, method, **mixed.fitting_forms(work, budget))
        return mixed.within_bytes(work, curves, budget, recipe.name)
    if goals.avg_bits is not None:
        tiny = mixed.least_average_bits(work) > goals.avg_bits
        curves = mixed.choices(work, score, method, tiny=tiny)
        return mixed.within_average_bits(work, curves, goals.avg_bits, recipe.name)
    curves = mixed.choices(work, score, method)
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
        found = mixed.within_drop(work, curves, work.tried, aim, recipe.name)
        if math.isinf(found.drop) or work.holds(*work.evaluate(found.plan), limit):
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
    """The best within a budget, or the fastest within the allowed drop."""
    wants_small = goals.max_drop is not None and not goals.fastest and goals.max_latency is None
    if goals.wants_size or wants_small:
        base = fused_base(work) if recipe.clean else Base(work).ready()
        return base.stamped(_knapsack(base.work, goals, recipe))
    limit = DEFAULT_DROP if goals.max_drop is None else goals.max_drop
    return fastest(work, limit, recipe)


_ALLOCATORS: Mapping[str, Callable[[Workspace, Goals, Recipe], Plan]] = {
    "uniform": _uniform,
    "knapsack": _knapsack,
    "rank": _rank,
    "bisect": _bisect,
}
