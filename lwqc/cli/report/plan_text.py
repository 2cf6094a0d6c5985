"""A plan for readers: what it depends on, its steps in order, and what it leaves alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from lwqc.compile.steps.table import of
from lwqc.passes.catalogue import described
from lwqc.plans.plan import DataSource, Plan


def plan_text(plan: Plan) -> str:
    """The summary, as lines of text."""
    lines = [*plan_heading(plan), "steps, in this order:"]
    steps = list(plan_steps(plan))
    lines += [f"  {number}. {step}" for number, step in enumerate(steps, 1)]
    if not steps:
        lines.append("  none: the model stays as it is")
    lines += _reasons("stays float, or partly so:", plan.kept_float)
    lines += _reasons("could not be transformed:", plan.untransformed)
    lines += _reasons("notes:", dict.fromkeys(plan.notes, ""))
    return "\n".join(lines) + "\n"


def plan_line(made: Plan, sites: int) -> str:
    """What a plan does, in a line. sites: how many the model has."""
    parts = [text for step in of(made) if (text := step.short(made))]
    if made.quantize or not parts:
        known = max(sites, len(made.quantize) + len(made.kept_float))  # experts become sites
        parts.append(f"{len(made.quantize)} of {known} sites planned")
    return ", ".join(parts)


def plan_heading(plan: Plan) -> Iterator[str]:
    """What a plan is for, and what it was made with."""
    recipe = f", recipe {plan.recipe}" if plan.recipe else ""
    yield f"{plan.source.name or 'a model'} ({plan.source.digest[:12]}) for {plan.target}{recipe}"
    if plan.budgets:
        yield f"asked for: {', '.join(f'{name} {value}' for name, value in plan.budgets.items())}"
    if plan.data is not None:
        yield f"made on {_data(plan.data)}"
    if plan.tools:
        yield f"made with {', '.join(f'{name} {version}' for name, version in plan.tools.items())}"


def _data(data: DataSource) -> str:
    shapes = ", ".join(f"{name} {list(shape)}" for name, shape in data.shapes.items())
    given = "" if data.given else ", as none was given"
    how = f", prepared by {data.preprocess}" if data.preprocess else ""
    return f"{data.name} ({data.feeds} feeds, the first {shapes}{given}{how})"


def plan_steps(plan: Plan) -> Iterator[str]:
    """What a plan does, a line for each step."""
    for step in of(plan):
        yield from step.text(plan)
    if plan.floats is not None:
        kept = f"; {len(plan.floats.keep)} operators stay in float32" if plan.floats.keep else ""
        yield f"the model computes in {plan.floats.dtype}{kept}"
    for name in plan.rewrites:
        what = described(name).summary.rstrip(".")
        yield f"rewritten for the runtime: {what[:1].lower()}{what[1:]} ({name})"
    for name, sizes in plan.profile.items():
        yield f"engines are built for {name} from {sizes[0]} to {sizes[2]}, best at {sizes[1]}"


def _reasons(title: str, reasons: Mapping[str, str]) -> list[str]:
    if not reasons:
        return []
    return [title, *(f"  {name}: {why}" if why else f"  {name}" for name, why in reasons.items())]
