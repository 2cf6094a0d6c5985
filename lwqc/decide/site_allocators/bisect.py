"""Two formats, the lower one for as many sites as a loss allows."""

from __future__ import annotations

from lwqc.compile.version import Version
from lwqc.decide import mixed, planning
from lwqc.decide.allocator import Allocator
from lwqc.decide.two_levels import Levels, bisected
from lwqc.errors import InputError
from lwqc.plans.bounds import DEFAULT_DROP
from lwqc.plans.goals import Goals
from lwqc.plans.plan import Plan
from lwqc.plans.recipe import Recipe


def _bisect(work: Version, goals: Goals, recipe: Recipe) -> Plan:
    if goals.wants_size:
        raise InputError(f"recipe {recipe.name} takes --max-drop, not a size")
    importance, told = mixed.augmented_sensitivity(work)
    limit = DEFAULT_DROP if goals.max_drop is None else goals.max_drop
    method = planning.affordable(work, recipe)
    levels = Levels(recipe.low, recipe.high)
    return bisected(work, importance, limit, levels, method, recipe.name).noted(told)


ALLOCATOR = Allocator(_bisect, own_codes=True, promises=True)
