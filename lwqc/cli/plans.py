"""What `lwqc plan` and `lwqc recipes` show of plans, recipes and their schemas."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lwqc.cli.shown import put

if TYPE_CHECKING:
    from lwqc.plans.plan import Plan


def read_plan(path: Path) -> Plan | None:
    """The plan in a file; None where it is none but, say, a model. Raises InputError."""
    from lwqc.plans.plan import Plan, is_plan

    return Plan.load(path) if is_plan(path) else None


def print_plan(plan: Plan) -> None:
    """Print a plan for a reader."""
    from lwqc.cli.report.plan_text import plan_text

    put(plan_text(plan))


def print_diff(before: Path, after: Path) -> None:
    """Print how two plans differ. Raises InputError where one cannot be read."""
    from lwqc.cli.report.plan_diff import plan_diff
    from lwqc.plans.plan import Plan

    found = plan_diff(Plan.load(before), Plan.load(after))
    for line in found or ["the plans are the same"]:
        put(line)


def print_schema(of: Literal["plan", "recipe"]) -> None:
    """Print a JSON Schema."""
    from lwqc.plans.schemas import schema_text

    put(schema_text(of))
