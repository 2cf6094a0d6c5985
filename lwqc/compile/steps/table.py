"""All steps, in the order in which plans are executed."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from lwqc.compile import steps as package
from lwqc.compile.steps.step import Looks, Step
from lwqc.plans.plan import Plan


@cache
def steps() -> tuple[Step, ...]:
    """The `STEP` of each file here that has one, in the order of the fields of `Plan`."""
    names = sorted(info.name for info in pkgutil.iter_modules(package.__path__))
    modules = (importlib.import_module(f"{package.__name__}.{name}") for name in names)
    found = {m.STEP.field: m.STEP for m in modules if hasattr(m, "STEP")}
    return tuple(found[name] for name in Plan.model_fields if name in found)


def of(plan: Plan) -> list[Step]:
    """Those that a plan has."""
    return [step for step in steps() if step.wanted(plan)]


def looks_at(plan: Plan) -> set[Looks]:
    """What executing the plan takes statistics on."""
    return {kind for step in of(plan) for kind in step.looks(plan)}
