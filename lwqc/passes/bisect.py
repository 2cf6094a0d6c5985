"""Finds the pass of a pipeline after which the outputs of a model move."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from lwqc.passes.instruments import TOLERANCE, Limit, Outputs, moved_output
from lwqc.passes.pipeline import Pipeline
from lwqc.passes.registry import item_of


@dataclass(frozen=True)
class Moved:
    """The first pass after which outputs move. number: from 1. step: its text. why: one line."""

    number: int
    step: str
    why: str


def first_moved(
    pipeline: Pipeline,
    model: ir.Model,
    run: Callable[[ir.Model], Outputs],
    tolerance: float = TOLERANCE,
) -> Moved | None:
    """The pass that moved them; None where the whole pipeline keeps the outputs.

    The model is not changed. run: gives the outputs of a model. A pipeline of n passes is run about
    log2(n) times in part; where outputs move and come back, one of the passes that moved them is
    found.
    """
    expected = run(model)

    def why(passes: int) -> str:
        copy = model.clone()
        pipeline.run(copy, instruments=[Limit(passes)])
        return moved_output(expected, run(copy), tolerance)

    good, bad = 0, len(pipeline.steps)
    reason = why(bad)
    if not reason:
        return None
    while bad - good > 1:
        middle = (good + bad) // 2
        if found := why(middle):
            bad, reason = middle, found
        else:
            good = middle
    return Moved(bad, str(item_of(pipeline.steps[bad - 1])), reason)
