"""What an allocator is: it decides which site gets which number format."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lwqc.compile.workspace import Workspace
from lwqc.model.extensions import ALLOCATORS
from lwqc.plans.goals import Goals
from lwqc.plans.plan import Plan
from lwqc.plans.recipe import Recipe


@dataclass(frozen=True)
class Allocator:
    """One way to decide.

    plan: entries of `Plan.quantize` for sites of the work, reasons in `Plan.kept_float` for those
    that get none; raises InputError for goals or a recipe that it cannot serve. What follows is the
    same for all: float types, sequential calibration, sizes to build for. own_codes: it chooses by
    which method codes are found; otherwise the recipe's method, rank and columns are set on what it
    chose. promises: it takes a bound on the loss, which is 1 % where the user says nothing.
    """

    plan: Callable[[Workspace, Goals, Recipe], Plan]
    own_codes: bool = False
    promises: bool = False


def find_allocator(name: str) -> Allocator:
    """The allocator of that name. Raises InputError."""
    found: Allocator = ALLOCATORS.find(name)
    return found
