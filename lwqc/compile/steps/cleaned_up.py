"""The step that cleans up the graph."""

from __future__ import annotations

from collections.abc import Iterator

from lwqc.compile.cleaned import cleaned
from lwqc.compile.steps.step import Made, Step
from lwqc.plans.plan import Plan
from lwqc.plans.wording import names_text


def _run(made: Made) -> Made:
    wanted = made.plan.clean
    return made if wanted is None else made.on(cleaned(made.version, wanted))


def _text(plan: Plan) -> Iterator[str]:
    if (clean := plan.clean) is not None:
        relaxed = f", not exactly at {names_text(clean.relaxed)}" if clean.relaxed else ""
        yield f"the graph is cleaned up: {', '.join(clean.changes) or 'no change'}{relaxed}"


STEP = Step("clean", _run, _text, short=lambda plan: "the graph cleaned up")
