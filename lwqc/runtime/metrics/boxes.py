"""What a detector's outputs say: classes, scores and boxes of each image, whatever their layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from lwqc.errors import InputError
from lwqc.model.numerals import share

Array = NDArray[Any]
Corners = Literal["xyxy", "xywh", "cxcywh"]
_MOST = 1000  # of one image that suppression looks at
_KEPT = 100  # of one class in one image that are judged, as COCO has it
_SHARE = 2.0  # numbers up to this are shares of the image's sides


@dataclass(frozen=True)
class Found:
    """Of one image, the best first.

    classes, scores: [n]. boxes: [n, 4], left, top, right and bottom.
    """

    classes: Array
    scores: Array
    boxes: Array

    def above(self, score: float) -> Found:
        """Those with at least this score."""
        kept = self.scores >= score
        return Found(self.classes[kept], self.scores[kept], self.boxes[kept])


@dataclass(frozen=True)
class Layout:
    """Where a model's outputs have its detections.

    boxes: output of [batch, places, 4], or of everything. scores: output of [batch, places,
    classes], of the best class at each place [batch, places], or "" where `boxes` has them behind
    the four numbers. labels: output of classes [batch, places]; "" where scores have a channel for
    each. flipped: axes are [batch, channels, places]. listed: rows are left, top, right, bottom,
    score and class, and nothing is to be suppressed.
    """

    boxes: str
    scores: str = ""
    labels: str = ""
    flipped: bool = False
    listed: bool = False

    @classmethod
    def of(
        cls, outputs: Mapping[str, Array], asked: str = "", *, sure: bool = False
    ) -> Self | None:
        """That of an original's outputs; None where they are not those of a detector.

        asked: the one output to look at. sure: they are; otherwise boxes that are shares of the
        image in one output with scores could be anything.
        """
        floats = {
            name: a
            for name, a in outputs.items()
            if a.dtype.kind == "f" and a.ndim == 3 and a.size and (not asked or name == asked)
        }
        for name, a in floats.items():
            if a.shape[-1] == 6 and _listed(a):
                return cls(name, listed=True)
        for name, a in floats.items():
            more_last = a.shape[1] < a.shape[2]  # there are more places than classes
            for flipped in (more_last, not more_last):
                rows = a.swapaxes(1, 2) if flipped else a
                boxes, scores = rows[..., :4], rows[..., 4:]
                if scores.size and _shares(scores) and (sure or not _shares(boxes)):
                    return cls(name, flipped=flipped)
        return cls._apart(outputs) if not asked else None

    @classmethod
    def _apart(cls, outputs: Mapping[str, Array]) -> Self | None:
        """Boxes in an output of their own."""
        floats = {n: a for n, a in outputs.items() if a.dtype.kind == "f" and a.size}
        for name, a in floats.items():
            if a.ndim not in (2, 3) or a.shape[-1] != 4:
                continue
            places = a.shape[:-1]
            scores = [n for n, s in floats.items() if n != name and _shares(s)]
            whole = [n for n, s in outputs.items() if s.shape == places and _whole(s) and n != name]
            single = [n for n in scores if outputs[n].shape == places and n not in whole]
            if single and whole:
                return cls(name, single[0], whole[0])
            many = [n for n in scores if outputs[n].shape[:-1] == places]
            if many:
                return cls(name, many[0])
        return None


@dataclass(frozen=True)
class Reader:
    """How detections are read.

    corners: what the four numbers of a box are. objectness: the first score says whether there is
    anything. overlap: of boxes of one class, that is too much.
    """

    layout: Layout
    corners: Corners
    objectness: bool = False
    overlap: float = 0.7

    def __call__(self, outputs: Mapping[str, Array], score: float) -> list[Found]:
        """Of each image, what has at least this score; boxes as the model has them."""
        return [self._one(*parts, score) for parts in self.rows(outputs)]

    def channels(self, outputs: Mapping[str, Array]) -> int | None:
        """How many classes there are; None where outputs do not tell."""
        ((_, scores, classes), *_) = self.rows(outputs)
        return scores.shape[1] if classes is None else None

    def gives_shares(self, outputs: Mapping[str, Array]) -> bool:
        """Whether boxes are shares of the image's sides."""
        return all(np.abs(b).max(initial=0.0) <= _SHARE for b, _, _ in self.rows(outputs))

    def rows(self, outputs: Mapping[str, Array]) -> list[tuple[Array, Array, Array | None]]:
        """Of each image boxes [places, 4], scores [places, classes], classes [places] or None."""
        layout = self.layout
        boxes = outputs[layout.boxes]
        if layout.listed:
            return [(a[:, :4], a[:, 4:5], a[:, 5]) for a in boxes]
        if not layout.scores:
            rows = boxes.swapaxes(1, 2) if layout.flipped else boxes
            return [(a[:, :4], self._weighed(a[:, 4:]), None) for a in rows]
        scores = outputs[layout.scores]
        labels = outputs[layout.labels] if layout.labels else None
        if boxes.ndim == 2:  # of one image, as torchvision's are
            boxes, scores = boxes[None], scores[None]
            labels = labels[None] if labels is not None else None
        if labels is not None:
            return [(b, s[:, None], c) for b, s, c in zip(boxes, scores, labels, strict=True)]
        return [(b, self._weighed(s), None) for b, s in zip(boxes, scores, strict=True)]

    def _weighed(self, scores: Array) -> Array:
        return scores[:, 1:] * scores[:, :1] if self.objectness else scores

    def _one(self, boxes: Array, scores: Array, classes: Array | None, least: float) -> Found:
        places, channels = np.nonzero(scores >= least)
        known = scores[places, channels].astype(np.float64)
        order = np.argsort(-known, kind="stable")[:_MOST]
        places, channels, known = places[order], channels[order], known[order]
        corners = _as_corners(boxes[places].astype(np.float64), self.corners)
        kinds = channels if classes is None else classes[places].astype(np.int64)
        if not self.layout.listed and classes is None:
            kept = suppressed(kinds, corners, self.overlap)
            kinds, known, corners = kinds[kept], known[kept], corners[kept]
        judged = _places(kinds) < _KEPT
        return Found(kinds[judged], known[judged], corners[judged])


def _places(kinds: Array) -> Array:
    """How many of the same class come before each, [n]."""
    places = np.zeros(len(kinds), np.intp)
    for kind in np.unique(kinds):
        same = kinds == kind
        places[same] = np.arange(same.sum())
    return places


def reader(
    outputs: Mapping[str, Array],
    asked: str = "",
    *,
    boxes: Corners | None = None,
    objectness: bool = False,
    overlap: float = 0.7,
) -> Reader | None:
    """A reader of outputs like these; None where they are not those of a detector.

    boxes: what their numbers are; None where that is to be told from these.
    """
    layout = Layout.of(outputs, asked, sure=boxes is not None)
    if layout is None:
        return None
    plain = Reader(layout, "xyxy", objectness, overlap)
    rows = [corners for corners, _, _ in plain.rows(outputs)]
    found = boxes or ("xyxy" if _are_corners(np.concatenate(rows)) else "cxcywh")
    return Reader(layout, found, objectness, overlap)


def suppressed(classes: Array, boxes: Array, overlap: float) -> Array:
    """Indices of boxes, the best first, that overlap no better one of their class too much."""
    if not len(boxes):
        return np.arange(0)
    clash = (overlaps(boxes, boxes) > overlap) & (classes[:, None] == classes[None, :])
    alive = np.ones(len(boxes), bool)
    for index in range(len(boxes)):
        if alive[index]:
            alive[index + 1 :] &= ~clash[index, index + 1 :]
    return np.nonzero(alive)[0]


def overlaps(first: Array, second: Array) -> Array:
    """Area that two boxes share, over that of either: [n, 4] and [m, 4] -> [n, m]."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    common = np.clip(high - low, 0, None).prod(-1)
    sizes = [np.clip(b[:, 2:] - b[:, :2], 0, None).prod(-1) for b in (first, second)]
    either = sizes[0][:, None] + sizes[1][None, :] - common
    shared: Array = np.divide(common, either, out=np.zeros_like(common), where=either > 0)
    return shared


def _as_corners(boxes: Array, kind: Corners) -> Array:
    if kind == "xyxy":
        return boxes
    start, size = boxes[:, :2], boxes[:, 2:]
    start = start - size / 2 if kind == "cxcywh" else start
    return np.concatenate((start, start + size), axis=1)


def _are_corners(boxes: Array) -> bool:
    """Whether almost all end behind where they begin."""
    return bool(((boxes[:, 2:] >= boxes[:, :2]).all(1)).mean() > 0.99)


def _shares(values: Array) -> bool:
    return bool(np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1)


def _whole(values: Array) -> bool:
    return bool(values.dtype.kind in "iu" or (values == np.round(values)).all())


def _listed(rows: Array) -> bool:
    """Whether each row is left, top, right, bottom, score, class."""
    flat = rows.reshape(-1, 6)
    return _shares(flat[:, 4]) and _whole(flat[:, 5]) and _are_corners(flat[:, :4])


def parse_options(given: Mapping[str, str], metric: str) -> dict[str, Any]:
    """`score`, `overlap`, `boxes` and `objectness` of a metric's name. Raises InputError."""
    found: dict[str, Any] = {}
    for key, text in given.items():
        try:
            if key in ("score", "overlap"):
                found[key] = share(text)
                if not 0 <= found[key] <= 1:
                    raise ValueError("expected a number from 0 to 1")
            elif key == "boxes" and text in ("xyxy", "xywh", "cxcywh"):
                found[key] = text
            elif key == "objectness" and text in ("yes", "no"):
                found[key] = text == "yes"
            else:
                raise ValueError(
                    "expected score=, overlap=, boxes=xyxy|xywh|cxcywh, objectness=yes"
                )
        except ValueError as error:
            raise InputError(f"--metric {metric}: {key}={text}: {error}") from error
    return found
