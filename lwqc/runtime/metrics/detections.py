"""Whether a detector finds what the original finds."""

from __future__ import annotations

import numpy as np

from lwqc.errors import InputError
from lwqc.runtime.metrics.task import Array, Run, Task
from lwqc.runtime.stats.divergence import LossMeter


class DetectionAgreement:
    """Scores above 0.5 of both models over those of either; a score is one class at one place."""

    name = "detection-agreement"
    higher_is_better = True
    against = "the original"

    def __init__(self, task: Task) -> None:
        """Raises InputError where the model gives no scores."""
        self._task = task
        self._output = task.output(_detects, "scores between 0 and 1")

    def __call__(self, run: Run) -> float:
        """The share on all data."""
        meter = LossMeter()
        answers = (answer for _, answer in self._task.answers(run, self._output))
        for expected, answer in zip(self._task.expected(self._output), answers, strict=True):
            meter.add(expected, answer)
        found = meter.result().decisions.detections
        if found is None:
            raise InputError(f"{self.name}: output {self._output} detects nothing in this data")
        return found


def _detects(answer: Array) -> bool:
    if answer.ndim < 2 or answer.dtype.kind != "f" or not np.isfinite(answer).all():
        return False
    meter = LossMeter()
    meter.add(answer, answer)
    decisions = meter.result().decisions
    known = decisions.detections is not None or decisions.strongest is not None
    return known or bool(answer.size and answer.min() >= 0 and answer.max() <= 1)
