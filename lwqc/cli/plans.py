"""What `lwqc plan` and `lwqc recipes` show of plans, recipes and their schemas."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from lwqc.plans.plan import Plan


def read_plan(path: Path) -> Plan | None:
    """The plan in a file; None where it is none but, say, a model. Raises InputError."""
    from lwqc.plans.plan import Plan, is_plan

    return Plan.load(path) if is_plan(path) else None


def print_plan(plan: Plan) -> None:
    """Print a plan for a reader."""
    from lwqc.cli.report.plan_text import plan_text

    print(plan_text(plan), end="")


def print_diff(before: Path, after: Path) -> None:
    """Print how two plans differ. Raises InputError where one cannot be read."""
    from lwqc.cli.report.plan_diff import plan_diff
    from lwqc.plans.plan import Plan

    found = plan_diff(Plan.load(before), Plan.load(after))
    print("\n".join(found) or "the plans are the same")


def print_schema(of: Literal["plan", "recipe"]) -> None:
    """Print a JSON Schema."""
    from lwqc.plans.schemas import schema_text

    print(schema_text(of), end="")
