"""Two formats by importance, within a budget."""

from __future__ import annotations

from typing import Literal

from lwqc.compile.version import Version
from lwqc.decide import mixed
from lwqc.decide.allocator import Allocator
from lwqc.decide.importance import layer_importance
from lwqc.errors import InputError
from lwqc.model import io
from lwqc.plans.goals import Goals
from lwqc.plans.plan import Plan
from lwqc.plans.recipe import Recipe


def _rank(work: Version, goals: Goals, recipe: Recipe) -> Plan:
    weights = sum(s.size for s in work.analysis.sites)
    kind: Literal["lim", "zd", "position"] = (
        recipe.score if recipe.score in ("zd", "position") else "lim"
    )
    importance = layer_importance(work, kind)
    budget: float | None
    if goals.max_size is not None:
        rest = io.serialized_bytes(work.model) - sum(s.float_bytes for s in work.analysis.sites)
        budget = goals.max_size.resolve(work.original.size_bytes) - rest
    elif goals.avg_bits is not None:
        budget = goals.avg_bits / 8 * weights
    elif kind == "position":
        budget = None
    else:
        raise InputError(f"recipe {recipe.name} needs a budget: --max-size or --avg-bits")
    return mixed.ranked(
        work, importance, budget, low=recipe.low, high=recipe.high, recipe=recipe.name
    )


ALLOCATOR = Allocator(_rank)
