"""Mixed bits: the least error within a size, or the smallest model within a loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

from lwqc.compile.candidates import evaluate, holds, tried
from lwqc.compile.version import Version
from lwqc.decide import mixed, planning
from lwqc.decide.allocator import Allocator
from lwqc.plans.bounds import DEFAULT_DROP
from lwqc.plans.goals import Goals
from lwqc.plans.plan import Plan
from lwqc.plans.recipe import Recipe

_BACK_OFFS = 4


def _knapsack(work: Version, goals: Goals, recipe: Recipe) -> Plan:
    score: mixed.Score = "weights" if recipe.score == "weights" else "measured"
    method = planning.affordable(work, recipe)
    if goals.max_size is not None:
        budget = goals.max_size.resolve(work.original.size_bytes)
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
    work: Version, curves: Sequence[mixed.Choice], limit: float, recipe: Recipe
) -> Plan:
    """The smallest plan whose drop on all data is allowed.

    The search compares on a few batches; when all of them together show more, it aims lower.
    """
    aim = limit
    for _ in range(_BACK_OFFS):
        found = mixed.within_drop(work, curves, partial(tried, work), aim, recipe.name)
        if math.isinf(found.drop) or holds(work, *evaluate(work, found.plan), limit):
            break
        aim *= 0.7
    return found.plan


ALLOCATOR = Allocator(_knapsack, own_codes=True, promises=True)
