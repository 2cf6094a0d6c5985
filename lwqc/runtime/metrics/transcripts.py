"""Errors of what a recogniser of texts or speech reads, by characters or by words."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from lwqc.errors import InputError
from lwqc.runtime.metrics.task import Array, Run, Task

_BLANK = 0  # the channel of no character, as torch and PaddleOCR have it


class CharacterError:
    """Edits over characters, of texts that are decoded greedily from CTC scores.

    The output is [batch, steps, characters]; channel 0 is blank, and line n of `classes=` is the
    character of channel n. Without labels the original's text is right, in channels.
    """

    name = "character-error"
    higher_is_better = False

    def __init__(self, task: Task) -> None:
        """Raises InputError where the model gives no such scores, or the alphabet is not known."""
        self._task = task
        self._output = task.output(
            lambda a: a.ndim == 3 and a.dtype.kind == "f", "scores [batch, steps, characters]"
        )
        labels = task.labels
        self._labels = None if labels is None or labels.of_folders else labels
        self.against = "the labels" if self._labels is not None else "the original"
        self._alphabet = self._labels.classes if self._labels is not None else ()
        if self._labels is not None and not self._alphabet:
            raise InputError(f"{self.name}: write classes=FILE, a character a line, from channel 1")

    @cached_property
    def _right(self) -> list[Sequence[object]]:
        if self._labels is not None:
            return [self._parts(list(name)) for name in self._labels.names]
        return [t for a in self._task.expected(self._output) for t in self._read(a)]

    def _read(self, scores: Array) -> list[Sequence[object]]:
        return [self._parts(self._text(row)) for row in scores.argmax(-1)]

    def _text(self, steps: Array) -> Sequence[object]:
        """Channels of the characters, or the characters where they are known."""
        first = np.append(True, steps[1:] != steps[:-1])
        channels = [int(c) for c in steps[first & (steps != _BLANK)]]
        if not self._alphabet:
            return channels
        # PaddleOCR's lists of characters leave out the last one, which is a space.
        return [self._alphabet[c - 1] if c <= len(self._alphabet) else " " for c in channels]

    def _parts(self, text: Sequence[object]) -> Sequence[object]:
        return text

    def __call__(self, run: Run) -> float:
        """The share on all data."""
        found = [t for _, a in self._task.answers(run, self._output) for t in self._read(a)]
        pairs = list(zip(self._right, found, strict=False))
        return sum(edits(a, b) for a, b in pairs) / max(sum(len(a) for a, _ in pairs), 1)


class WordError(CharacterError):
    """The same over words, which are what spaces divide."""

    name = "word-error"

    def __init__(self, task: Task) -> None:
        """Raises InputError without labels and the characters that channels stand for."""
        super().__init__(task)
        if self._labels is None:
            raise InputError(f"{self.name}: needs labels=FILE and classes=FILE of characters")

    def _parts(self, text: Sequence[object]) -> Sequence[object]:
        return "".join(map(str, text)).split()


def edits(first: Sequence[object], second: Sequence[object]) -> int:
    """Fewest insertions, deletions and exchanges between two texts (Levenshtein's distance)."""
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        before, row[0] = row[0], i
        for j, b in enumerate(second, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]
