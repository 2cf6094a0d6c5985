"""The step that makes weights sparse."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from lwqc.compile.steps.step import Looks, Made, Step
from lwqc.passes.sparsify import Sparsify
from lwqc.plans.plan import Plan
from lwqc.plans.wording import counts_text


def _run(made: Made) -> Made:
    made.check_sites(made.plan.sparse)
    model = made.model.clone()
    Sparsify(made.plan.sparse, made.version.grams)(model)
    return replace(made, model=model)


def _text(plan: Plan) -> Iterator[str]:
    methods: Counter[str] = Counter(e.method for e in plan.sparse.values())
    yield f"2:4 sparsity of {len(plan.sparse)} weights: {counts_text(methods)}"


def _looks(plan: Plan) -> Iterator[Looks]:
    if any(e.method == "sparsegpt" or e.refine for e in plan.sparse.values()):
        yield "data"


STEP = Step("sparse", _run, _text, looks=_looks)
