"""Plans with what they depend on, as they are written to files."""

from __future__ import annotations

from lwqc.compile.locks import tool_versions
from lwqc.compile.version import Version
from lwqc.plans.goals import Goals
from lwqc.plans.plan import Plan


def stamped(work: Version, plan: Plan, goals: Goals | None = None) -> Plan:
    """The plan with what it depends on; while it is only executed it needs nothing of that.

    goals: what it was made for; where they bound nothing, what the plan says stays.
    """
    depends = {
        "source": work.begun.source,
        "data": work.original.data_source,
        "tools": tool_versions(),
    }
    asked = goals.asked if goals is not None else {}
    bounds = work.job.weights.bounds
    if asked and bounds:
        asked["bound_outputs"] = ",".join(f"{name}={bound:g}" for name, bound in bounds.items())
    return plan.model_copy(update={**depends, "budgets": asked or plan.budgets})
