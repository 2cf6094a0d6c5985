"""How far a command is on the whole: its phases, how long they took, and what that leaves.

Each kind of job goes through known phases, whose shares of its time were measured on detectors,
language models and classifiers (`benchmarks/progress.py`). Time per share is that of this run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

# By kind of job: phase -> its share of the time, in the order of the work.
JOURNEYS: Mapping[str, Mapping[str, float]] = {
    "change": {"opening": 0.05, "deciding": 0.6, "checking": 0.35},
    "fastest": {
        "opening": 0.05,
        "cleaning up": 0.17,
        "timing sites": 0.06,
        "candidates": 0.24,
        "finalists": 0.14,
        "checking": 0.34,
    },
    "fitted": {
        "opening": 0.05,
        "fitting each part": 0.35,
        "fitting the whole": 0.45,
        "checking": 0.15,
    },
    "smallest": {
        "opening": 0.05,
        "formats within the loss": 0.37,
        "fewer channels": 0.35,
        "checking": 0.23,
    },
    "passes": {"opening": 0.1, "running passes": 0.6, "checking": 0.3},
    "conversion": {"opening": 0.01, "converting": 0.72, "checking": 0.27},
    "search": {
        "opening": 0.05,
        "preparing the search": 0.36,
        "starts": 0.06,
        "evolution": 0.32,
        "taking the best": 0.03,
        "checking": 0.18,
    },
}
_OWN = {
    stage: kind
    for kind, phases in JOURNEYS.items()
    for stage in phases
    if sum(stage in other for other in JOURNEYS.values()) == 1
}
_FIRST_S = 3.0  # that opening takes, before anything is known of this run
_UNSEEN = 0.9  # of a step, that it is taken to have done at most before it says so
_TAIL = 0.6  # makes that 0.56 of a step after the time that it is expected to take
_KNOWN = 0.05  # of the whole: less than that tells nothing


class Journey:
    """Where a command is, from what its stages report. Times are seconds since it began."""

    def __init__(self) -> None:
        self._phases = JOURNEYS["change"]
        self._phase = "opening"
        self._moved = self._share = self._loaded = 0.0
        self._expected = _FIRST_S
        self._at = (0, 1)
        self._inner = ""

    def report(self, stage: str, done: int, total: int, now: float) -> None:
        """A stage is done to a part. What is no phase, is over or begins again is part of the
        current one. `opening` says that the program is loaded: shares are of the time from there.
        """
        if stage == "opening":
            self._loaded = self._moved = now
            return
        kind = _OWN.get(stage)
        if kind is not None and self._phases is JOURNEYS["change"]:
            self._phases, self._phase = JOURNEYS[kind], "opening"
        reached, steps = self._at
        if stage == self._phase and done * steps > reached * total:
            self._at, self._moved, self._inner = (done, max(total, 1)), now, ""
        elif self._comes_later(stage):
            self._enter(stage, done, max(total, 1), now)
        else:
            self._inner = f"{stage} {done} of {total}"
        self.share(now)

    def _comes_later(self, stage: str) -> bool:
        order = list(self._phases)
        return stage in order[order.index(self._phase) + 1 :]

    def _enter(self, stage: str, done: int, total: int, now: float) -> None:
        begins = self._begins(stage)
        self._share = max(self._share, begins)
        self._expected = max(now - self._loaded, 0.1) / begins * self._phases[stage]
        self._phase, self._moved = stage, now
        self._at, self._inner = (done, total), ""

    def _begins(self, phase: str) -> float:
        """Share of the whole before a phase."""
        order = list(self._phases)
        return math.fsum(self._phases[one] for one in order[: order.index(phase)])

    def share(self, now: float) -> float:
        """Of the whole that is done, 0 to 1: it only grows, also while a step says nothing."""
        done, total = self._at
        waited = (now - self._moved) / (self._expected / total)
        unseen = _UNSEEN * waited / (waited + _TAIL) if done < total else 0.0
        part = min((done + unseen) / total, 1.0) * self._phases[self._phase]
        self._share = max(self._share, min(self._begins(self._phase) + part, 1.0))
        return self._share

    def whole_s(self, now: float) -> float | None:
        """Seconds that the command is expected to take; None before that can be told."""
        share = self.share(now)
        if share <= _KNOWN or self._phase == "opening":
            return None
        return self._loaded + (now - self._loaded) / share

    def place(self) -> str:
        """The phase, and what of it is being done."""
        done, total = self._at
        phase = f"{self._phase} {done} of {total}" if total > 1 else self._phase
        return f"{phase}: {self._inner}" if self._inner else phase

    def left(self, now: float) -> str:
        """`, about 8 s left`, where that is known."""
        whole = self.whole_s(now)
        return "" if whole is None else f", about {duration_text(whole - now)} left"

    def words(self, now: float) -> str:
        """The time, what is left of it, and what is being done."""
        return f"{duration_text(now)}{self.left(now)}  {self.place()}"


def duration_text(seconds: float) -> str:
    """For readers: `8 s`, `1:05`, `2:00:00`."""
    whole = round(seconds)
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02}:{rest:02}"
    return f"{minutes}:{rest:02}" if minutes else f"{rest} s"
