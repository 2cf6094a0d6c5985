"""Two formats by importance, within a budget."""

from __future__ import annotations

from collections.abc import Callable

from lwqc.compile.candidates import with_formats
from lwqc.compile.version import Version
from lwqc.decide.allocator import Allocator
from lwqc.decide.importance import LayerScore, layer_importance
from lwqc.decide.two_levels import Levels, ranked
from lwqc.errors import InputError
from lwqc.model import io
from lwqc.plans.goals import Goals
from lwqc.plans.plan import Plan
from lwqc.plans.recipe import Recipe

_ROUNDS = 8


def _rank(work: Version, goals: Goals, recipe: Recipe) -> Plan:
    kind: LayerScore = recipe.score if recipe.score in ("zd", "position") else "lim"
    importance = layer_importance(work, kind)
    levels = Levels(recipe.low, recipe.high)

    def within(budget: float | None) -> Plan:
        return ranked(work, importance, budget, levels, recipe.name)

    if goals.max_size is not None:
        return _within_bytes(work, within, goals.max_size.resolve(work.original.size_bytes))
    if goals.avg_bits is not None:
        return within(goals.avg_bits / 8 * sum(s.size for s in work.analysis.sites))
    if kind == "position":
        return within(None)
    raise InputError(f"recipe {recipe.name} needs a budget: --max-size or --avg-bits")


def _within_bytes(work: Version, within: Callable[[float], Plan], size: float) -> Plan:
    """The plan whose saved size is at most `size` bytes, of a function from bytes of all sites.

    The graph grows with what is rewritten: what it took too much is taken off the budget.
    """
    rest = io.serialized_bytes(work.model) - sum(s.float_bytes for s in work.analysis.sites)
    budget = size - rest
    for _ in range(_ROUNDS):
        plan = within(budget)
        excess = io.serialized_bytes(with_formats(work, plan).model) - size
        if excess <= 0:
            break
        budget -= excess
    return plan


ALLOCATOR = Allocator(_rank)
