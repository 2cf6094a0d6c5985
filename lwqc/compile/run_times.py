"""How long whole models of one job take, side by side."""

from __future__ import annotations

import onnx_ir as ir

from lwqc.compile.version import Version
from lwqc.runtime.measure import medians_ms
from lwqc.runtime.session import Session


def run_ms(work: Version, *models: ir.Model | Session) -> list[float]:
    """Median milliseconds of a run of each model, as the target runs it, at the first shape served.

    Empty where the target is not timed here: the times of another device tell nothing of it.
    """
    if not work.job.timed:
        return []
    sessions = [m if isinstance(m, Session) else work.job.load(m) for m in models]
    return medians_ms(sessions, work.job.data.serve[0].feeds)
