"""A plan is executed, worded and locked by a table of its steps."""

from __future__ import annotations

import re

from lwqc.cli.report.plan_text import plan_line, plan_text
from lwqc.compile.steps.table import looks_at, steps
from lwqc.plans.plan import Plan
from lwqc.quant.formats import WeightFormat
from tests.test_layers import FILES

# Fields that a target lowers, and what is no step.
LOWERED = {"floats", "rewrites", "profile", "activations"}
ABOUT = {
    "version", "source", "data", "tools", "target", "recipe", "budgets", "kept_float",
    "untransformed", "notes",
}  # fmt: skip
HOW = {"sequential": "quantize", "token_weights": "transforms"}


def test_every_field_that_changes_a_model_is_a_step_in_its_order() -> None:
    names = [step.field for step in steps()]
    assert names == [f for f in Plan.model_fields if f in names]
    assert {*names, *LOWERED, *ABOUT, *HOW} == Plan.model_fields.keys()


def test_execution_knows_no_step_by_name() -> None:
    """One more step is its data in the plan, its file, and whoever decides on it."""
    text = FILES["lwqc.compile.execute"].read_text() + FILES["lwqc.compile.locks"].read_text()
    known = {f"plan.{s.field}" for s in steps()} & set(re.findall(r"plan\.\w+", text))
    # What is lowered, and why a restored operator could not be.
    assert known <= {"plan.quantize", "plan.sparse", "plan.restore"}


def test_what_steps_say_and_look_at() -> None:
    plan = Plan.model_validate(
        {
            "source": {},
            "opset": 21,
            "parallel": [{"first": "a", "second": "b"}],
            "slice": [{"group": "g", "width": 4, "calibration": "random"}],
            "sparse": {"w": {"method": "sparsegpt"}},
            "quantize": {"v": {"weight": str(WeightFormat(8)), "method": "gptq"}},
        }
    )
    assert plan_line(plan, 3) == (
        "1 pairs of branches made parallel, 1 streams narrowed, 1 of 3 sites planned"
    )
    lines = plan_text(plan).splitlines()
    assert [line.partition(". ")[2] for line in lines if ". " in line] == [
        "the model is converted to opset 21",
        "1 pairs of branches become parallel: a and b",
        "streams are narrowed: g to 4",
        "2:4 sparsity of 1 weights: sparsegpt 1",
        "1 sites are quantized:",
    ]
    assert looks_at(plan) == {"data", "random"}
    assert looks_at(Plan.model_validate({"source": {}})) == set()
