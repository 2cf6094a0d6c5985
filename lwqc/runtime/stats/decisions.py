"""Whether two outputs lead to the same decisions: classes, detections, labels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lwqc.runtime.stats.channel_error import is_distribution

Array = NDArray[Any]
_POSITIONS = 64  # from which the strongest of them is a decision
_TOP = 10
_TIE = 0.02  # of the winner's score: within that the choice is one of equals
_THRESHOLD = 0.5  # above which a score in [0, 1] is a detection
_EDGE = 1e-6  # by which scores may leave [0, 1]
_WORDS = {
    "labels": "labels",
    "top_1": "largest channel",
    "detections": "detections",
    "strongest": "strongest place of each class",
    "top_10": "ten strongest places",
    "sizes": "sizes",
}
_NORMAL = 1.959964  # standard deviations of 95 %


@dataclass(frozen=True)
class Agreement:
    """Shares of decisions that are the same; None where an output makes no such decision.

    labels: of whole numbers, booleans and texts. top_1: the largest channel at each position.
    strongest: of each channel of scores, between 0 and 1, the position that scores most, in each
    sample. top_10: the ten positions that score most in any such channel. detections: scores above
    0.5 in both, over those in either. A position as strong as the reference's to 2 % counts as
    the same. sizes: of outputs whose size depends on the data, the smaller over the larger.
    counted: how many decisions each share is of, in the words of `shares`.
    """

    labels: float | None = None
    top_1: float | None = None
    strongest: float | None = None
    top_10: float | None = None
    detections: float | None = None
    sizes: float | None = None
    counted: Mapping[str, float] = field(default_factory=dict)

    @property
    def loss(self) -> float:
        """Share of decisions lost, where outputs are decisions rather than numbers to decide by.

        The largest channel of logits is left to `ChannelErrors`: of close ones it says little.
        """
        found = (self.labels, self.strongest, self.top_10, self.sizes)
        return max((1 - share for share in found if share is not None), default=0.0)

    def shares(self) -> dict[str, float]:
        """Those that there are, in words."""
        shares = {words: getattr(self, name) for name, words in _WORDS.items()}
        return {words: share for words, share in shares.items() if share is not None}

    def interval(self, name: str) -> tuple[float, float]:
        """Where a share would be found again in 95 % of draws of as many other decisions.

        Wilson's interval (1927), as if they were independent; those of one input hardly are.
        """
        share, of = self.shares()[name], self.counted[name]
        spread = _NORMAL**2 / of
        middle = (share + spread / 2) / (1 + spread)
        half = math.sqrt(share * (1 - share) * spread + spread**2 / 4) / (1 + spread)
        return max(0.0, middle - half), min(1.0, middle + half)


@dataclass
class _Share:
    """A share as it is counted."""

    same: float = 0.0
    of: float = 0.0

    def add(self, same: float, of: float) -> None:
        self.same += same
        self.of += of

    @property
    def value(self) -> float | None:
        return self.same / self.of if self.of else None


@dataclass
class DecisionMeter:
    """Counts the decisions of one output, batch by batch."""

    _labels: _Share = field(default_factory=_Share)
    _top_1: _Share = field(default_factory=_Share)
    _strongest: _Share = field(default_factory=_Share)
    _top_10: _Share = field(default_factory=_Share)
    _detections: _Share = field(default_factory=_Share)
    _sizes: _Share = field(default_factory=_Share)

    def add_labels(self, reference: Array, value: Array) -> None:
        """Whole numbers, booleans or texts of equal shape."""
        self._labels.add(float((reference == value).sum()), reference.size)

    def add_sizes(self, reference: Array, value: Array) -> None:
        """Outputs of different shape."""
        small, large = sorted((reference.size, value.size))
        self._sizes.add(small / large if large else 1.0, 1.0)

    def add_scores(self, reference: Array, value: Array, axis: int | None) -> None:
        """Floats of equal shape, with channels along `axis`."""
        if not reference.size:
            return
        if axis is None:
            self._add_detections(reference, value)
            return
        a = np.moveaxis(reference, axis, -1)
        b = np.moveaxis(value, axis, -1)
        if a.shape[-1] > 1:
            same = a.argmax(-1) == b.argmax(-1)
            self._top_1.add(float(same.sum()), same.size)
        if is_distribution(reference, axis):
            return
        rest = tuple(range(a.ndim - 1))
        scores = (a.min(rest) > 0) & (a.max(rest) <= 1 + _EDGE)  # features may be 0, sigmoids not
        if not scores.any():
            return
        a, b = a[..., scores], b[..., scores]
        self._add_detections(a, b)
        samples = len(a)
        a, b = (x.reshape(samples, -1, x.shape[-1]) for x in (a, b))
        if a.shape[1] >= _POSITIONS:
            self._add_positions(a, b)

    def _add_positions(self, a: Array, b: Array) -> None:
        """Scores [samples, positions, channels]."""
        chosen = b.argmax(1)[:, None, :]
        kept = np.take_along_axis(a, chosen, 1)[:, 0] >= (1 - _TIE) * a.max(1)
        self._strongest.add(float(kept.sum()), kept.size)
        a, b = a.max(-1), b.max(-1)
        last = -np.sort(-a, 1)[:, _TOP - 1 : _TOP]
        best = np.argsort(-b, 1, kind="stable")[:, :_TOP]
        same = np.take_along_axis(a, best, 1) >= (1 - _TIE) * last
        self._top_10.add(float(same.sum()), same.size)

    def _add_detections(self, a: Array, b: Array) -> None:
        if a.min() < -_EDGE or a.max() > 1 + _EDGE:
            return
        before, after = a > _THRESHOLD, b > _THRESHOLD
        self._detections.add(float((before & after).sum()), float((before | after).sum()))

    def result(self) -> Agreement:
        """Shares over everything added so far."""
        shares: dict[str, _Share] = {name: getattr(self, f"_{name}") for name in _WORDS}
        counted = {_WORDS[name]: share.of for name, share in shares.items() if share.of}
        return Agreement(**{n: share.value for n, share in shares.items()}, counted=counted)
