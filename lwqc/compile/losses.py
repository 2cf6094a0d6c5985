"""What candidates lose against the model that they are compared with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from numpy.typing import NDArray

from lwqc.compile.reference import Reference
from lwqc.compile.version import Version
from lwqc.errors import InputError
from lwqc.plans.goals import Goals
from lwqc.runtime.flips import Flips, flips, top1_of
from lwqc.runtime.measure import compare, losses, weighted, worst_drop
from lwqc.runtime.recorded import Recorded
from lwqc.runtime.session import Session
from lwqc.runtime.stats.collector import Runner
from lwqc.runtime.stats.divergence import Divergence, Loss, LossesMeter


def judged_drop(work: Version, session: Session | Recorded) -> float:
    """Loss of a candidate: on the metric, or on the judging feeds against the original."""
    metric = work.job.metric
    if metric is not None:
        return metric.drop(work.original.metric, metric(session))
    return worst_drop(compared(work, session).result(), work.job.weights)


def full_drop(work: Version, session: Session) -> float:
    """Loss of a candidate on the metric, or on all data against the original."""
    if work.job.metric is not None:
        return judged_drop(work, session)
    known, data = work.original.recorded, work.job.data.fit
    return worst_drop(losses(known, session, data, without=work.incomparable), work.job.weights)


def outputs_error(work: Version, session: Session, against: Reference | None = None) -> float:
    """Error of the outputs by channel, on the judging feeds; the worst one.

    Infinite where a decision is lost that is the output itself, such as a label. against: what
    they are compared with, the original by default.
    """
    weights = work.job.weights if against is None else {}
    return worst_error(compared(work, session, against).result(), weights)


def moved(work: Version, session: Session) -> float:
    """The same against the outputs of the model that plans are for."""
    return outputs_error(work, session, work.begun)


def answers_of(work: Version, session: Session) -> Session | Recorded:
    """A session whose outputs are kept where they are looked at more than once.

    A metric of the caller's may write into what it is given.
    """
    metric = work.job.metric
    return Recorded(session) if metric is not None and metric.ours else session


def divergences(work: Version, session: Session | Recorded) -> dict[str, Divergence]:
    """Full comparison with the original over all data."""
    known, data = work.original.recorded, work.job.data.fit
    return compare(known, session, data, without=work.incomparable)


def compared(work: Version, session: Runner, against: Reference | None = None) -> LossesMeter:
    """Comparison with the original, or another reference, on the judging feeds."""
    reference = against or work.original
    expected = [comparable(work, outputs) for outputs in reference.judged]
    known = zip(work.job.data.judge, expected, strict=True)
    return LossesMeter().over((outputs, session(feeds)) for feeds, outputs in known)


def comparable(work: Version, outputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Those outputs of a reference that the version has too."""
    return {name: value for name, value in outputs.items() if name not in work.incomparable}


def worst_error(
    found: Mapping[str, Loss | Divergence], weights: Mapping[str, float] = MappingProxyType({})
) -> float:
    """Error by channel of the output that moved most; infinite where a label is another one.

    weights: of outputs, see `lwqc.runtime.measure.weighted`.
    """
    lost = any(
        d.decisions.labels not in (None, 1) for name, d in found.items() if weights.get(name, 1.0)
    )
    errors = (weighted(d.error, name, weights) for name, d in found.items())
    return math.inf if lost else max(errors, default=0.0)


def flips_of(work: Version, *sessions: Session | Recorded) -> Flips | None:
    """Decisions that are others than the original's, where the metric is by decisions.

    sessions: of a compressed model, or of several that were made alike.
    """
    top1 = top1_of(work.job.metric)
    return None if top1 is None else flips(top1, work.original.recorded, sessions)


def check_classes(work: Version, goals: Goals) -> None:
    """Raises InputError for a bound on classes where nothing says what is decided."""
    if goals.max_class_drop is not None and top1_of(work.job.metric) is None:
        raise InputError("--max-class-drop is judged by decisions: give --metric top1")
