"""Whether samples keep their nearest neighbours in a smaller model's embeddings."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property

import numpy as np

from lwqc.errors import InputError
from lwqc.model.extensions import expected
from lwqc.model.numerals import whole
from lwqc.runtime.metrics.task import Array, Run, Task

_NEIGHBOURS = 10  # where nobody says how many
_NUMBERS = 1 << 22  # similarities at once
_SAME = 1e-6  # of cosines: what float32 rounds
_SMALL = 1e-30  # length of what has no direction


class EmbeddingRecall:
    """Recall at k: of the k samples nearest to each by the original's embeddings, the share that is
    among its k nearest by the other model's.

    Near is what has a high cosine; a sample is no neighbour of its own. Neighbours that are as near
    as the k-th count as found.
    """

    name = "embedding-recall"
    higher_is_better = True
    takes_options = True
    against = "the original"

    def __init__(self, task: Task) -> None:
        """Raises InputError where the model gives no embeddings, or too few samples are there."""
        self._task = task
        self._k = _count(task)
        self._output = task.output(_is_embedding, "embeddings [batch, size]")

    @cached_property
    def _right(self) -> Array:
        """Directions of the original's embeddings, [samples, size]."""
        return _directions(self._task.expected(self._output))

    @cached_property
    def _least(self) -> Array:
        """Cosine of each sample's k-th neighbour, [samples]."""
        self._check(len(self._right))
        parts = [
            np.take_along_axis(near, found[:, -1:], 1)[:, 0]
            for _, near, found in _nearest(self._right, self._k)
        ]
        return np.concatenate(parts)

    def __call__(self, run: Run) -> float:
        """The share on all data."""
        least = self._least
        own = _directions(answer for _, answer in self._task.answers(run, self._output))
        hits = 0
        for start, near, found in _nearest(own, self._k):
            rows = slice(start, start + len(found))
            cosines = np.take_along_axis(self._right[rows] @ self._right.T, found, 1)
            known = np.isfinite(np.take_along_axis(near, found, 1))
            hits += int((known & (cosines >= least[rows, None] - _SAME)).sum())
        return hits / (self._k * len(own))

    def _check(self, samples: int) -> None:
        if samples <= self._k:
            raise InputError(
                f"{self.name}: {self._k} neighbours need more than {self._k} samples, the data has "
                f"{samples}: write k=N behind the name"
            )


def _count(task: Task) -> int:
    """k of the options. Raises InputError."""
    for key in task.options:
        if key != "k":
            raise InputError(
                f"{EmbeddingRecall.name}: {key!r} is none of it; {expected(key, ['k'])}"
            )
    text = task.options.get("k", str(_NEIGHBOURS))
    try:
        found = whole(text)
    except ValueError:
        found = 0
    if found < 1:
        raise InputError(f"{EmbeddingRecall.name}: k={text[:40]}: expected a count of at least 1")
    return found


def _is_embedding(answer: Array) -> bool:
    return answer.ndim == 2 and answer.dtype.kind == "f" and answer.shape[1] > 1


def _directions(answers: Iterable[Array]) -> Array:
    """Embeddings of length 1, in double precision."""
    rows = np.concatenate([answer.astype(np.float64) for answer in answers])
    found: Array = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), _SMALL)
    return found


def _nearest(rows: Array, k: int) -> Iterable[tuple[int, Array, Array]]:
    """In pieces: the first sample, cosines to all samples, and which k are nearest, nearest first.

    Cosines with oneself and of what is no number are -inf.
    """
    step = max(1, _NUMBERS // len(rows))
    for start in range(0, len(rows), step):
        near = rows[start : start + step] @ rows.T
        near[~np.isfinite(near)] = -np.inf
        near[np.arange(len(near)), np.arange(start, start + len(near))] = -np.inf
        found = np.argpartition(near, -k, axis=1)[:, -k:]
        order = np.argsort(-np.take_along_axis(near, found, 1), axis=1)
        yield start, near, np.take_along_axis(found, order, 1)
