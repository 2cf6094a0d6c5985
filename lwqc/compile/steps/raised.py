"""The step that converts a model to another operator set."""

from __future__ import annotations

from lwqc.compile.lifted import raised
from lwqc.compile.steps.step import Made, Step


def _run(made: Made) -> Made:
    version = made.plan.opset
    return made if version is None else made.on(raised(made.version, version))


STEP = Step("opset", _run, lambda plan: [f"the model is converted to opset {plan.opset}"])
