"""Measured facts about models: size, latency side by side, divergence, a user's metric."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from numpy.typing import NDArray

from lwqc.errors import InputError
from lwqc.model.user_code import load_callable, running
from lwqc.runtime.data import Dataset
from lwqc.runtime.loadable import Loadable
from lwqc.runtime.profile import OperatorTime, operator_times
from lwqc.runtime.recorded import Recorded
from lwqc.runtime.session import Session
from lwqc.runtime.settling import compared, ratios
from lwqc.runtime.stats.divergence import Divergence, Loss, LossesMeter, OutputMeter
from lwqc.runtime.timer import time_runs, time_turns

NOISE = 1.05  # repeated timings of one model differ by this much
# A median whose interval is narrower than what repeated timings differ by is as good as one of
# a longer timing; on a machine that is not quiet enough the whole time is taken.
_KNOWN = 1.03
_RATIO = 1.02  # where ratios are known this closely, medians need be no closer than `NOISE`
_SECONDS = 1.5  # of timing per model, where something is decided by it
Run = Callable[[Mapping[str, NDArray[Any]]], dict[str, NDArray[Any]]]


@dataclass(frozen=True)
class Latency:
    """Time of one run in milliseconds: median, and the 10th and 90th percentile.

    relative: over the time of the first model that was timed beside it, the median of all rounds,
    see `settling.ratios`. It is closer than the quotient of two medians, as what else the machine
    does slows down both in a round alike.
    """

    median_ms: float
    p10_ms: float
    p90_ms: float
    runs: int
    relative: float = 1.0


@dataclass(frozen=True)
class OperatorRow:
    """Time that the nodes of one operator take in a run, before and after. op: as executed."""

    op: str
    before_ms: float
    after_ms: float
    nodes_before: int
    nodes_after: int


@dataclass(frozen=True)
class Metric:
    """A user's quality measure: a callable that gets a `run` function and returns a number.

    ours: it is one of lwqc's, see `lwqc.runtime.metrics`, whose errors are told as they are.
    """

    name: str
    function: Callable[[Run], float]
    higher_is_better: bool = True
    ours: bool = False

    def __call__(self, run: Run) -> float:
        """The metric's value. Raises InputError when the user's function gives no number."""
        if self.ours:
            return self.function(run)
        with running(f"{self.name}: the metric failed"):
            value = self.function(run)
        if isinstance(value, (str, bytes)) or not hasattr(value, "__float__"):
            raise InputError(
                f"{self.name}: the metric gave a {type(value).__name__}; expected a number"
            )
        with running(f"{self.name}: the metric gave no number"):
            return float(value)

    def drop(self, reference: float, value: float) -> float:
        """How much worse `value` is, as a fraction of the reference; negative when better.

        Where the reference is 0, such as an error rate at its best, the difference itself. What is
        no finite number is as bad as can be.
        """
        worse = reference - value if self.higher_is_better else value - reference
        return worse / (abs(reference) or 1.0) if math.isfinite(worse) else math.inf


def load_metric(spec: str) -> Metric:
    """`module:function` taking `run(feeds) -> outputs`; see `Metric`.

    A function with the attribute `higher_is_better = False` is a loss. Raises InputError.
    """
    function = load_callable(spec)
    return Metric(spec, function, getattr(function, "higher_is_better", True))


def compare(
    reference: Session | Recorded,
    candidate: Session | Recorded,
    data: Dataset,
    *,
    without: Collection[str] = (),
) -> dict[str, Divergence]:
    """Divergence per output over all data, in constant memory; some outputs may be left out.

    Raises InputError when the two models share no output.
    """
    meter = OutputMeter()
    _run_both(reference, candidate, data, without, meter)
    return meter.result()


def losses(
    reference: Session | Recorded,
    candidate: Session,
    data: Dataset,
    *,
    without: Collection[str] = (),
) -> dict[str, Loss]:
    """The same without what only readers look at."""
    meter = LossesMeter()
    _run_both(reference, candidate, data, without, meter)
    return meter.result()


def _run_both(
    reference: Session | Recorded,
    candidate: Session | Recorded,
    data: Dataset,
    without: Collection[str],
    meter: OutputMeter | LossesMeter,
) -> None:
    known = set(candidate.outputs) - set(without)
    shared = [name for name in reference.outputs if name in known]
    if not shared:
        raise InputError(f"the models share no output: {reference.outputs} and {candidate.outputs}")
    runs = ((reference(feeds), candidate(feeds)) for feeds in data)
    meter.over(({n: a[n] for n in shared}, b) for a, b in runs)


def worst_drop(
    divergence: Mapping[str, Loss | Divergence], weights: Mapping[str, float] = MappingProxyType({})
) -> float:
    """Loss of the output that moved most, each times its weight; see `Divergence.drop`."""
    return max((weighted(d.drop, n, weights) for n, d in divergence.items()), default=0.0)


def drop_of_others(
    found: Mapping[str, Divergence], weights: Mapping[str, float], bounds: Collection[str]
) -> float:
    """`worst_drop` of outputs without a bound of their own; of all where each has one."""
    return worst_drop({n: d for n, d in found.items() if n not in bounds} or found, weights)


def weighted(loss: float, output: str, weights: Mapping[str, float]) -> float:
    """The loss times the output's weight, 1 where there is none; 0 of what does not count."""
    weight = weights.get(output, 1.0)
    return loss * weight if weight else 0.0


def latencies(
    sessions: Sequence[Session], feeds: Mapping[str, NDArray[Any]], seconds: float = 2.0
) -> list[Latency]:
    """Time sessions side by side with alternating order, until what they take is known."""
    settled = compared(_KNOWN, NOISE, _RATIO)
    times = time_turns(sessions, feeds, seconds=seconds, settled=settled)
    return [_summary(own, times[0]) for own in times]


def medians_ms(sessions: Sequence[Session], feeds: Mapping[str, NDArray[Any]]) -> list[float]:
    """Median times of one run in milliseconds, side by side with alternating order."""
    times = time_runs(sessions, feeds, seconds=_SECONDS)
    return [statistics.median(t) * 1e3 for t in times]


def operator_rows(
    before: Loadable, after: Loadable, feeds: Mapping[str, NDArray[Any]]
) -> list[OperatorRow]:
    """Where the time of two models goes, by operator, most of it first."""
    old, new = operator_times(before, feeds), operator_times(after, feeds)
    none = OperatorTime(0.0, 0)
    rows = [
        OperatorRow(op, a.milliseconds, b.milliseconds, a.nodes, b.nodes)
        for op in {**old, **new}
        for a, b in [(old.get(op, none), new.get(op, none))]
    ]
    return sorted(rows, key=lambda r: -max(r.before_ms, r.after_ms))


def _summary(turns: Sequence[Sequence[float]], first: Sequence[Sequence[float]]) -> Latency:
    ordered = sorted(t * 1e3 for turn in turns for t in turn)
    last = len(ordered) - 1
    return Latency(
        statistics.median(ordered),
        ordered[round(last * 0.1)],
        ordered[round(last * 0.9)],
        len(ordered),
        statistics.median(ratios(turns, first)),
    )
