"""Decides which site gets which number format."""

from __future__ import annotations

from lwqc.compile.cleaned import cleaned, cleaning, cleanup_for
from lwqc.compile.lifted import lifted
from lwqc.compile.steps.transforms import version
from lwqc.compile.version import Version
from lwqc.decide import planning
from lwqc.decide.allocator import find_allocator
from lwqc.decide.base import Base, copies_experts, fused_base
from lwqc.decide.fastest import fastest, never_slower
from lwqc.decide.float_plan import with_float_type, with_floats
from lwqc.decide.narrower import faster, narrowed, smaller
from lwqc.decide.own_formats import with_own_formats
from lwqc.decide.profiles import with_profile
from lwqc.decide.sparse_plan import with_sparsity
from lwqc.decide.transforms import choose_transforms
from lwqc.errors import InputError
from lwqc.model.extensions import ALLOCATORS
from lwqc.plans.bounds import DEFAULT_DROP
from lwqc.plans.goals import Goals
from lwqc.plans.plan import Plan
from lwqc.plans.recipe import Recipe, find

_BACK_OFFS = 4
_NO_WEIGHT = "has no weight that could take a number format"
_IN_PARTS = ("uniform", "none")  # allocators that look at one weight after the other


def allocate(work: Version, goals: Goals, recipe: Recipe, *, structure: bool = False) -> Plan:
    """The plan of a recipe that quantizes, or only cleans up; `auto` also tries formats it has.

    See `_chosen` and `own_formats`. Raises InputError.
    """
    plan = _chosen(work, goals, recipe, structure)
    if recipe.allocator != "auto" or goals.wants_size or goals.bounds:
        return plan
    small = _wants_small(goals)
    return with_own_formats(work, plan, _limit(goals), small=small)


def _chosen(work: Version, goals: Goals, recipe: Recipe, structure: bool) -> Plan:
    """The plan of a recipe for the model as it is. Raises InputError.

    So does `auto` where nothing can take a format; recipes that name one are refused there. Formats
    may need a newer operator set than the model has; it is raised for them alone.

    structure: what formats leave of the allowed loss is spent on channels, where `auto` decides and
    there is real data.
    """
    if recipe.allocator == "none":
        return _decided(work, goals, recipe, structure)
    if not work.analysis.sites and not copies_experts(work):
        reason = f"{_NO_WEIGHT}{_why_not(work)}"
        if recipe.allocator != "auto":
            raise InputError(f"{work.name}: {reason}")
        plan = _decided(work, goals, find("clean"), structure)
        return plan.model_copy(update={"recipe": recipe.name}).noted(f"{reason}: only cleaned up")
    newer, notes = lifted(work)
    plan = _decided(newer, goals, recipe, structure)
    if newer is not work and plan.clean is None and not _needs_newer(work, newer, plan):
        return plan
    return plan.model_copy(update={"opset": newer.raised}).noted(*notes)


def _needs_newer(work: Version, newer: Version, plan: Plan) -> bool:
    """Whether a plan for the newer operator set has formats that the model's own does not allow."""
    target, sites = work.job.target, newer.sites
    forms = (target.form(sites[name], e, work.opset) for name, e in plan.quantize.items())
    return any(map(target.refuses, forms))


def _decided(work: Version, goals: Goals, recipe: Recipe, structure: bool) -> Plan:
    if recipe.allocator not in _IN_PARTS:
        work.job.whole(f"recipe {recipe.name}, which tries candidates,")
    if recipe.rotate:
        work.job.whole("rotation")
    if recipe.allocator == "auto":
        return _auto(work, goals, recipe, structure)
    # A normalization or scale between two convolutions keeps both from the kernels of 8-bit values,
    # and weights that are copied for each token from any format.
    if recipe.clean or recipe.activations == "static" or copies_experts(work):
        merge = recipe.clean and recipe.merge
        clean, left = cleaning(work, cleanup_for(work, merge=merge))
        made = cleaned(work, clean)
        if recipe.allocator != "none" and not made.analysis.sites:
            raise InputError(f"{work.name}: {_NO_WEIGHT}{_why_not(made)}")
        plan = _allocated(made, goals, recipe)
        plan = plan.model_copy(
            update={"clean": clean, "untransformed": {**left, **plan.untransformed}}
        )
        return (
            plan if recipe.allocator != "none" or not work.job.timed else never_slower(work, plan)
        )
    return _allocated(work, goals, recipe)


def _why_not(work: Version) -> str:
    """What keeps the largest weight that is left out from taking a format."""
    largest = max(work.analysis.skipped, key=lambda s: s.size, default=None)
    if largest is None:
        return ""
    more = len(work.analysis.skipped) - 1
    return f"; {largest.name}: {largest.reason}{f' (and {more} more)' if more else ''}"


def _allocated(work: Version, goals: Goals, recipe: Recipe) -> Plan:
    if recipe.allocator == "none":
        plan = with_sparsity(work, planning.unchanged(work, recipe.name), recipe)
        return with_profile(work, with_floats(work, plan), {})
    if recipe.sequential and not work.job.data.fit.given:
        raise InputError("sequential calibration looks at the data: give --data")
    found = choose_transforms(work, recipe)
    if recipe.sequential:
        work.job.whole("sequential calibration")
    work = version(work, found.transforms, token_weights=recipe.token_weights)
    work = with_float_type(work)
    allocator = find_allocator(recipe.allocator)
    with ALLOCATORS.running(recipe.allocator):
        plan = allocator.plan(work, goals, recipe)
    if not allocator.own_codes:
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


def _auto(work: Version, goals: Goals, recipe: Recipe, structure: bool) -> Plan:
    """The best within a budget, or the fastest within the allowed drop."""
    limit = _limit(goals)
    if goals.wants_size or _wants_small(goals):
        if structure and not goals.bounds:  # channels come then
            work.job.report("formats within the loss")(0, 1)
        base = fused_base(work) if recipe.clean else Base(work).ready()
        plan, better = find_allocator("knapsack").plan(base.work, goals, recipe), smaller
    else:
        base, plan = fastest(work, limit, recipe)
        better = faster
    known = better is smaller or work.job.timed  # whether it is better can be told
    if structure and known and not goals.bounds:
        base, plan = narrowed(base, plan, limit, recipe, better=better)
    return base.stamped(plan)


def _limit(goals: Goals) -> float:
    """The largest drop that is allowed."""
    return DEFAULT_DROP if goals.max_drop is None else goals.max_drop


def _wants_small(goals: Goals) -> bool:
    """Whether a loss was allowed for bytes, not for time."""
    return goals.max_drop is not None and not goals.fastest and "max_latency" not in goals.bounds
