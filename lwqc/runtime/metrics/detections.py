"""Whether a detector finds what there is, or what the original finds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property

import numpy as np

from lwqc.errors import InputError
from lwqc.runtime.data import Feeds
from lwqc.runtime.metrics.boxes import Found, Reader, parse_options, reader
from lwqc.runtime.metrics.precision import OVERLAPS, matches, mean_average_precision
from lwqc.runtime.metrics.task import Array, Run, Task
from lwqc.runtime.stats.divergence import LossMeter

_SAME = 0.5  # overlap of boxes that are one
_DETECTED = 0.5  # score of what counts as found
_CERTAIN = 0.25  # score of the original's detections that others are to have, without labels
_ANY = 0.001  # of those that precision is taken over
_CHANNELS = 4  # of an image, at most


class DetectionAgreement:
    """Detections of both models over those of either.

    Boxes of one class that share half of their area are one. Where the model gives scores but no
    boxes, a detection is one class at one place.
    """

    name = "detection-agreement"
    higher_is_better = True
    takes_options = True
    against = "the original"

    def __init__(self, task: Task) -> None:
        """Raises InputError where the model gives no scores."""
        self._task = task
        self._boxes = _Boxes.of(task, self.name, _DETECTED)
        if self._boxes is None:
            if task.options:
                given = ", ".join(task.options)
                raise InputError(f"{self.name}: the model gives no boxes: leave out {given}")
            self._output = task.output(_detects, "scores between 0 and 1")

    def __call__(self, run: Run) -> float:
        """The share on all data."""
        return self._at_places(run) if self._boxes is None else self._of_boxes(run, self._boxes)

    def _of_boxes(self, run: Run, boxes: _Boxes) -> float:
        common = either = 0
        for mine, theirs in zip(boxes.of_run(run, boxes.least), boxes.expected, strict=True):
            same = matches(mine, theirs, _SAME)
            common, either = common + same, either + len(mine.scores) + len(theirs.scores) - same
        return common / either

    def _at_places(self, run: Run) -> float:
        meter = LossMeter()
        answers = (answer for _, answer in self._task.answers(run, self._output))
        for expected, answer in zip(self._task.expected(self._output), answers, strict=True):
            meter.add(expected, answer)
        found = meter.result().decisions.detections
        if found is None:
            raise InputError(f"{self.name}: output {self._output} detects nothing in this data")
        return found


class MeanAveragePrecision:
    """COCO's mean average precision, over overlaps of 0.5 to 0.95.

    Against the boxes of `--preprocess boxes=FILE`; without them against what the original finds
    with a score of at least 0.25.
    """

    name = "map"
    higher_is_better = True
    takes_options = True
    overlaps: tuple[float, ...] = OVERLAPS

    def __init__(self, task: Task) -> None:
        """Raises InputError where the model gives no boxes that are known."""
        self._task = task
        found = _Boxes.of(task, self.name, _CERTAIN)
        if found is None:
            shown = ", ".join(f"{n} {list(a.shape)}" for n, a in task.first.items())
            raise InputError(
                f"{self.name}: no outputs are boxes and scores as docs/data.md has them; the model "
                f"gives {shown}"
            )
        self._boxes = found
        self.against = "the boxes" if task.boxes is not None else "the original"
        known = found.reader.channels(task.first)
        most = max((int(image[:, 0].max(initial=0)) for image in task.boxes or ()), default=0)
        if known is not None and most >= known:
            raise InputError(f"{self.name}: class {most}: the model has {known} classes, from 0")

    @cached_property
    def _right(self) -> list[Found]:
        if self._task.boxes is None:
            return self._boxes.expected
        return [Found(b[:, 0].astype(int), np.ones(len(b)), b[:, 1:]) for b in self._task.boxes]

    def __call__(self, run: Run) -> float:
        """The precision on all data."""
        found = list(self._boxes.of_run(run, _ANY))
        right = self._right[: len(found)]
        if not any(len(one.scores) for one in right):
            raise InputError(f"{self.name}: none of these images has a box")
        return mean_average_precision(found, right, self.overlaps)


class PrecisionAtHalf(MeanAveragePrecision):
    """The same at an overlap of 0.5 alone."""

    name = "map50"
    overlaps = (0.5,)


class _Boxes:
    """Detections of models on a task's data, in pixels of the inputs."""

    def __init__(self, task: Task, read: Reader, name: str, least: float) -> None:
        self._task, self.reader, self._name, self.least = task, read, name, least
        self._shares = read.gives_shares(task.first)

    @classmethod
    def of(cls, task: Task, name: str, least: float) -> _Boxes | None:
        """None where the model gives no boxes. least: score, unless the user says another one."""
        options = parse_options(task.options, name)
        least = options.pop("score", least)
        read = reader(task.first, task.asked, **options)
        return None if read is None else cls(task, read, name, least)

    @cached_property
    def expected(self) -> list[Found]:
        """What the original finds. Raises InputError where that is nothing."""
        found, best = [], 0.0
        for feeds, outputs in self._task.originals():
            every = self._read(feeds, outputs, 0.0)
            best = max([best, *(float(one.scores[0]) for one in every if len(one.scores))])
            found += [one.above(self.least) for one in every]
        if not any(len(one.scores) for one in found):
            raise InputError(
                f"{self._name}: the original detects nothing in this data: no score is "
                f"{self.least:g} or more, the best is {best:.2g}; write {self._name},score=NUMBER "
                "for what counts"
            )
        return found

    def of_run(self, run: Run, least: float) -> Iterator[Found]:
        """What a model finds in each image."""
        for feeds in self._task.data:
            yield from self._read(feeds, run(feeds), least)

    def _read(self, feeds: Feeds, outputs: Mapping[str, Array], least: float) -> list[Found]:
        found = self.reader(outputs, least)
        if not self._shares:
            return found
        sides = np.array([*_sides(feeds)] * 2, np.float64)
        return [Found(one.classes, one.scores, one.boxes * sides) for one in found]


def _sides(feeds: Feeds) -> tuple[int, int]:
    """Width and height of the images; of 1 where no input is one."""
    image = next((a for a in feeds.values() if a.ndim == 4), None)
    if image is None:
        return 1, 1
    height, width = image.shape[1:3] if image.shape[-1] <= _CHANNELS else image.shape[2:]
    return width, height


def _detects(answer: Array) -> bool:
    if answer.ndim < 2 or answer.dtype.kind != "f" or not np.isfinite(answer).all():
        return False
    meter = LossMeter()
    meter.add(answer, answer)
    decisions = meter.result().decisions
    known = decisions.detections is not None or decisions.strongest is not None
    return known or bool(answer.size and answer.min() >= 0 and answer.max() <= 1)
