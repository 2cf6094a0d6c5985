"""Share of samples whose class is right, or without labels the original's."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lwqc.errors import InputError
from lwqc.runtime.metrics.task import Run, Task

Array = NDArray[Any]


class Top1:
    """The largest number of an output [batch, classes], or the label itself of one [batch]."""

    name = "top1"
    higher_is_better = True

    def __init__(self, task: Task) -> None:
        """Raises InputError where the model gives no classes, or labels are none of them."""
        self._task = task
        self._output = task.output(_is_class, "classes [batch, classes] or labels [batch]")
        self.against = "the labels" if task.labels is not None else "the original"
        self._check()

    def _check(self) -> None:
        """Labels are channels that there are."""
        answer, labels = self._task.first[self._output], self._task.labels
        if labels is None or answer.dtype.kind not in "f":
            return
        most, classes = int(labels.numbers.max()), answer.shape[1]
        if labels.numbers.min() < 0 or most >= classes:
            raise InputError(f"label {most}: output {self._output} has {classes} classes, from 0")

    @cached_property
    def _right(self) -> Array:
        """The class of every sample."""
        right = self.right
        if right is None:
            return np.concatenate([_class(a) for a in self._task.expected(self._output)])
        return right

    @property
    def right(self) -> Array | None:
        """Labels, of the kind that decisions are; None without any."""
        labels = self._task.labels
        if labels is None:
            return None
        if self._task.first[self._output].dtype.kind in "OU":
            return np.array(labels.names, dtype=object)
        return labels.numbers

    def __call__(self, run: Run) -> float:
        """The share on all data."""
        answers = self.decisions(run)
        return float((answers == self._right[: len(answers)]).mean())

    def decisions(self, run: Run) -> Array:
        """The class that a model gives every sample, [n]."""
        found = [_class(a) for _, a in self._task.answers(run, self._output)]
        return np.concatenate(found)


def _is_class(answer: Array) -> bool:
    return (answer.ndim == 2 and answer.dtype.kind == "f" and answer.shape[1] > 1) or (
        answer.ndim == 1 and answer.dtype.kind in "iuOU"
    )


def _class(answer: Array) -> Array:
    return np.argmax(answer, axis=1) if answer.ndim == 2 else answer
