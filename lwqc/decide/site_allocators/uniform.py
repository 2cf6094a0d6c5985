"""One format for all sites."""

from __future__ import annotations

from lwqc.compile.version import Version
from lwqc.decide import planning
from lwqc.decide.allocator import Allocator
from lwqc.plans.goals import Goals
from lwqc.plans.plan import Plan
from lwqc.plans.recipe import Recipe


def _uniform(work: Version, goals: Goals, recipe: Recipe) -> Plan:
    plan = planning.uniform(
        work,
        recipe.bits,
        recipe.activations,
        search=recipe.search,
        kind=recipe.kind,
        fmt=recipe.format,
        recipe=recipe.name,
    )
    return planning.calibrate(work, plan, recipe.ranges)


ALLOCATOR = Allocator(_uniform)
