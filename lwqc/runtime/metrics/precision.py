"""Mean average precision of detections, as COCO counts it.

Lin et al., Microsoft COCO, ECCV 2014; precision is read at 101 recalls, of the 100 best detections
of each image.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lwqc.runtime.metrics.boxes import Array, Found, overlaps

OVERLAPS = tuple(np.linspace(0.5, 0.95, 10))
_RECALLS = np.linspace(0, 1, 101)


def mean_average_precision(
    found: Sequence[Found], right: Sequence[Found], least: Sequence[float] = OVERLAPS
) -> float:
    """Over classes that there are, and over least overlaps. 0 to 1; NaN where nothing is right."""
    classes = np.unique(np.concatenate([one.classes for one in right]))
    each = [_average(found, right, kind, level) for kind in classes for level in least]
    return float(np.mean(each)) if each else float("nan")


def _average(found: Sequence[Found], right: Sequence[Found], kind: int, least: float) -> float:
    """Average precision of one class at one overlap."""
    scores, hits, total = [], [], 0
    for one, truth in zip(found, right, strict=True):
        mine, wanted = one.classes == kind, truth.boxes[truth.classes == kind]
        total += len(wanted)
        scores.append(one.scores[mine])
        hits.append(_hits(one.boxes[mine], wanted, least))
    order = np.argsort(-np.concatenate(scores), kind="stable")
    right_so_far = np.cumsum(np.concatenate(hits)[order])
    precision = right_so_far / np.arange(1, len(right_so_far) + 1)
    recall = right_so_far / total
    best_from_here = np.maximum.accumulate(precision[::-1])[::-1]
    at = np.searchsorted(recall, _RECALLS, side="left")
    return float(np.append(best_from_here, 0.0)[np.minimum(at, len(recall))].mean())


def _hits(boxes: Array, wanted: Array, least: float) -> Array:
    """Whether each box, the best first, is that of something that no better one has found."""
    shared = overlaps(boxes, wanted) if len(boxes) and len(wanted) else np.zeros((len(boxes), 0))
    free = np.ones(len(wanted), bool)
    hits = np.zeros(len(boxes), bool)
    for index, row in enumerate(shared):
        open_ones = np.where(free & (row >= least), row, -1.0)
        if len(open_ones) and open_ones.max() >= 0:
            free[open_ones.argmax()] = False
            hits[index] = True
    return hits


def matches(first: Found, second: Found, least: float) -> int:
    """How many of `first` are of the class and at the place of one of `second`, each but once."""
    both = np.intersect1d(first.classes, second.classes)
    return sum(
        int(_hits(first.boxes[first.classes == k], second.boxes[second.classes == k], least).sum())
        for k in both
    )
