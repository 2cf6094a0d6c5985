"""Which decisions a compressed model makes otherwise, and which classes that hits.

Samples whose decision flips are the compression identified exemplars of Hooker et al. (1911.05248),
of one model in place of a population.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from io import StringIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lwqc.errors import InputError
from lwqc.runtime.measure import Metric, Run
from lwqc.runtime.metrics.top1 import Top1

Array = NDArray[Any]
_RESAMPLES = 2000
_INTERVAL = (0.025, 0.975)


@dataclass(frozen=True)
class Flip:
    """A sample, counted from 0, that is decided otherwise. right: its label, None without any."""

    sample: int
    right: str | None
    before: str
    after: str


@dataclass(frozen=True)
class ClassChange:
    """A class: how many samples it has, and the share of them that is decided right.

    low, high: 95 % interval of after - before, from a bootstrap over the class's samples.
    """

    name: str
    samples: int
    before: float
    after: float
    low: float
    high: float

    @property
    def drop(self) -> float:
        """How much of the class is lost; negative where it gained."""
        return self.before - self.after


@dataclass(frozen=True)
class Flips:
    """Decisions of two models on the same samples. classes: those that lost most first.

    whole: all samples as if they were one class.

    Without labels what the original decides is right.
    """

    against: str
    samples: int
    flipped: tuple[Flip, ...]
    classes: tuple[ClassChange, ...]
    whole: ClassChange

    @property
    def worst(self) -> float:
        """What the class that lost most has lost."""
        return max((c.drop for c in self.classes), default=0.0)

    def text(self, kind: str) -> str:
        """The flipped samples as `csv`, or with the classes as `json`."""
        if kind == "json":
            return json.dumps(asdict(self), indent=1) + "\n"
        out = StringIO()
        rows = csv.writer(out, lineterminator="\n")
        rows.writerow(["sample", "right", "before", "after"])
        rows.writerows((f.sample, f.right, f.before, f.after) for f in self.flipped)
        return out.getvalue()


def top1_of(metric: Metric | None) -> Top1 | None:
    """The metric by whose decisions flips are told, where it is that one."""
    function = None if metric is None else metric.function
    return function if isinstance(function, Top1) else None


def flips(metric: Top1, before: Run, after: Run) -> Flips:
    """Compare the decisions of two models on all data."""
    return compare_decisions(
        metric.decisions(before), metric.decisions(after), metric.right, metric.against
    )


def compare_decisions(
    before: Array, after: Array, right: Array | None, against: str = "the labels"
) -> Flips:
    """Decisions [n] and what is right [n]; without that, what was decided before is."""
    truth = before if right is None else right[: len(before)]
    places = np.flatnonzero(before != after)
    flipped = tuple(
        Flip(int(i), None if right is None else str(truth[i]), str(before[i]), str(after[i]))
        for i in places
    )
    rng = np.random.default_rng(0)
    names, numbers = np.unique(truth, return_inverse=True)
    was, now = before == truth, after == truth
    classes = [
        _change(str(name), was[numbers == number], now[numbers == number], rng)
        for number, name in enumerate(names)
    ]
    classes.sort(key=lambda c: (-c.drop, c.name))
    whole = _change("all", was, now, rng)
    return Flips(against, len(before), flipped, tuple(classes), whole)


def _change(
    name: str, before: NDArray[np.bool_], after: NDArray[np.bool_], rng: np.random.Generator
) -> ClassChange:
    count = len(before)
    gained, lost = (after & ~before).mean(), (before & ~after).mean()
    drawn = rng.multinomial(count, [gained, lost, max(0.0, 1 - gained - lost)], _RESAMPLES)
    low, high = np.quantile((drawn[:, 0] - drawn[:, 1]) / count, _INTERVAL)
    return ClassChange(
        name, count, float(before.mean()), float(after.mean()), float(low), float(high)
    )


def list_kind(name: str) -> str:
    """How a list is written, by the end of its name. Raises InputError."""
    kinds: Mapping[str, str] = {".csv": "csv", ".json": "json"}
    for end, kind in kinds.items():
        if name.lower().endswith(end):
            return kind
    raise InputError(f"{name}: a list of flipped samples is a .csv or a .json file")
