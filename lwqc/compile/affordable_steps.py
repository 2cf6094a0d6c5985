"""How many steps of a fit a time allows: a few are made, and timed."""

from __future__ import annotations

import time

import onnx_ir as ir

from lwqc.compile.fitted import Fitting, timed
from lwqc.compile.lesson import Lesson
from lwqc.plans.plan import Learn

_SPARE = 0.9  # of the time: later steps are not all as fast as the first
_LEAST = 20  # steps, of which fewer are no fit


def within(seconds: float, small: ir.Model, lesson: Lesson, learn: Learn) -> Learn | None:
    """Learning, with as many steps as take about so long here; None where those are too few.

    Another machine, or the same under another load, makes them in another time, but to the same
    end: a fit that stops by the clock could not be made again.
    """
    begin = time.monotonic()
    pace = timed(small, lesson, Fitting(1, learn.lr, learn.seed))
    left = _SPARE * (seconds - (time.monotonic() - begin))
    rounds = learn.whole + (learn.parts != "none")  # all parts together are as large as the whole
    steps = pace.steps_within(left / rounds)
    return None if steps < _LEAST else learn.model_copy(update={"steps": steps})
