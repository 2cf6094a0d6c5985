"""How long whole models of one job take, side by side."""

from __future__ import annotations

import onnx_ir as ir

from lwqc.compile.version import Version
from lwqc.runtime.measure import medians_ms
from lwqc.runtime.served import relative_times
from lwqc.runtime.session import Session

_SECONDS = 2.0  # of timing per model


def run_ms(work: Version, *models: ir.Model | Session) -> list[float]:
    """Median milliseconds of a run of each model, as the target runs it, at the first shape served.

    Empty where the target is not timed here: the times of another device tell nothing of it.
    """
    if not work.job.timed:
        return []
    sessions = [m if isinstance(m, Session) else work.job.load(m) for m in models]
    return medians_ms(sessions, work.job.data.serve[0].feeds)


def time_share(work: Version, model: ir.Model) -> float:
    """Of the original's time that a model takes, at the first shape served.

    The mean of two sessions, as two of one model may differ by a few percent.
    """
    sessions = [work.original.timed_session, work.job.load(model), work.job.load(model)]
    _, (one,), (other,) = relative_times(sessions, work.job.data.serve[:1], _SECONDS)
    return (one + other) / 2
