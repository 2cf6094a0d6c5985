"""What an allocator is: it decides which site gets which number format."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from lwqc.compile.version import Version
from lwqc.decide import planning
from lwqc.model.extensions import ALLOCATORS
from lwqc.plans.goals import Goals
from lwqc.plans.plan import Plan, SiteEntry
from lwqc.plans.recipe import Recipe

Choose = Callable[[Version, Goals, Recipe], Mapping[str, SiteEntry | str]]


@dataclass(frozen=True)
class Allocator:
    """One way to decide.

    plan: entries of `Plan.quantize` for sites of the work, reasons in `Plan.kept_float` for those
    that get none; raises InputError for goals or a recipe that it cannot serve. What follows is the
    same for all: float types, sequential calibration, sizes to build for. own_codes: it chooses by
    which method codes are found; otherwise the recipe's method, rank and columns are set on what it
    chose. promises: it takes a bound on the loss, which is 1 % where the user says nothing.
    """

    plan: Callable[[Version, Goals, Recipe], Plan]
    own_codes: bool = False
    promises: bool = False

    @classmethod
    def of_entries(cls, choose: Choose, *, promises: bool = False) -> Allocator:
        """An allocator that says for each site what it gets.

        choose: by the name of a site the entry, or the reason why it stays float; a site that is
        left out stays float without one.
        """

        def plan(work: Version, goals: Goals, recipe: Recipe) -> Plan:
            chosen = choose(work, goals, recipe)
            kept = {name: why for name, why in chosen.items() if isinstance(why, str)}
            entries = {n: entry for n, entry in chosen.items() if not isinstance(entry, str)}
            made = planning.unchanged(work, recipe.name)
            return made.model_copy(update={"quantize": entries, "kept_float": kept})

        return cls(plan, promises=promises)


def find_allocator(name: str) -> Allocator:
    """The allocator of that name. Raises InputError."""
    found: Allocator = ALLOCATORS.find(name)
    return found
