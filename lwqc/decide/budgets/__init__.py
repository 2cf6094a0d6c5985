"""What budgets bound: one file each, called like its option in `lwqc.plans.options.Budgets`."""

from __future__ import annotations

from functools import cache
from importlib import import_module

from lwqc.compile.budget import register
from lwqc.plans.goals import BOUNDS


@cache
def register_all() -> None:
    """Make every budget known to what compiles and reports; each file has it as `BUDGET`."""
    for option in BOUNDS:
        register(import_module(f"{__name__}.{option}").BUDGET)
