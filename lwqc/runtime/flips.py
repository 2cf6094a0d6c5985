"""Which decisions a compressed model makes otherwise, and which classes that hits.

Samples whose decision flips are the compression identified exemplars of Hooker et al. (1911.05248),
by what most models of a population decide, or by one model.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Mapping, Sequence
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
    """A sample, counted from 0, that is decided otherwise. right: its label, None without any.

    after: what most of the models that do so decide. share: of the models, that do.
    """

    sample: int
    right: str | None
    before: str
    after: str
    share: float = 1.0


@dataclass(frozen=True)
class ClassChange:
    """A class: how many samples it has, and the share of them that is decided right.

    after: the mean over the models; least, most: of single ones. low, high: 95 % interval of
    after - before, from a bootstrap over the class's samples.
    """

    name: str
    samples: int
    before: float
    after: float
    low: float
    high: float
    least: float
    most: float

    @property
    def drop(self) -> float:
        """How much of the class is lost; negative where it gained."""
        return self.before - self.after


@dataclass(frozen=True)
class Flips:
    """Decisions of a model and of compressed ones on the same samples.

    models: how many compressed ones there are. flipped: samples that most of these decide
    otherwise. classes: those that lost most first. whole: all samples as if they were one class.

    Without labels what the original decides is right.
    """

    against: str
    samples: int
    flipped: tuple[Flip, ...]
    classes: tuple[ClassChange, ...]
    whole: ClassChange
    models: int = 1

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
        many = self.models > 1
        rows.writerow(["sample", "right", "before", "after", *(["share"] if many else [])])
        rows.writerows(
            (f.sample, f.right, f.before, f.after, *([f"{f.share:.3g}"] if many else []))
            for f in self.flipped
        )
        return out.getvalue()


def top1_of(metric: Metric | None) -> Top1 | None:
    """The metric by whose decisions flips are told, where it is that one."""
    function = None if metric is None else metric.function
    return function if isinstance(function, Top1) else None


def flips(metric: Top1, before: Run, after: Sequence[Run]) -> Flips:
    """Compare the decisions of a model with those of compressed ones on all data."""
    decided = np.stack([metric.decisions(run) for run in after])
    return compare_decisions(metric.decisions(before), decided, metric.right, metric.against)


def compare_decisions(
    before: Array, after: Array, right: Array | None, against: str = "the labels"
) -> Flips:
    """Decisions [n] and those of compressed models [models, n], and what is right [n].

    Without that, what was decided before is.
    """
    truth = before if right is None else right[: len(before)]
    otherwise = (after != before).mean(axis=0)
    flipped = tuple(
        Flip(
            int(i),
            None if right is None else str(truth[i]),
            str(before[i]),
            _most_common(after[:, i], before[i]),
            float(otherwise[i]),
        )
        for i in np.flatnonzero(otherwise > 0.5)
    )
    rng = np.random.default_rng(0)
    names, numbers = np.unique(truth, return_inverse=True)
    was, now = before == truth, after == truth
    classes = [
        _change(str(name), was[numbers == number], now[:, numbers == number], rng)
        for number, name in enumerate(names)
    ]
    classes.sort(key=lambda c: (-c.drop, c.name))
    whole = _change("all", was, now, rng)
    return Flips(against, len(before), flipped, tuple(classes), whole, len(after))


def _most_common(decided: Array, before: Any) -> str:
    """Of what is not what it was before; the first by name where it is a tie."""
    counts = Counter(str(one) for one in decided if one != before)
    return min(counts, key=lambda name: (-counts[name], name))


def _change(
    name: str,
    before: NDArray[np.bool_],
    after: NDArray[np.bool_],
    rng: np.random.Generator,
) -> ClassChange:
    count = len(before)
    values, counts = np.unique(after.mean(axis=0) - before, return_counts=True)
    drawn = rng.multinomial(count, counts / count, _RESAMPLES)
    low, high = np.quantile(drawn @ values / count, _INTERVAL)
    each = after.mean(axis=1)
    return ClassChange(
        name,
        count,
        float(before.mean()),
        float(after.mean()),
        float(low),
        float(high),
        float(each.min()),
        float(each.max()),
    )


def list_kind(name: str) -> str:
    """How a list is written, by the end of its name. Raises InputError."""
    kinds: Mapping[str, str] = {".csv": "csv", ".json": "json"}
    for end, kind in kinds.items():
        if name.lower().endswith(end):
            return kind
    raise InputError(f"{name}: a list of flipped samples is a .csv or a .json file")
