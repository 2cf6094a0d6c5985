"""Milliseconds of one run, at each shape that the model serves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lwqc.compile.budget import Reached
from lwqc.compile.compressed import Compressed
from lwqc.compile.job import Job
from lwqc.compile.outcomes import latency_outcomes
from lwqc.compile.run_times import time_share
from lwqc.compile.version import Version
from lwqc.decide.search.bounded import Bounded
from lwqc.decide.search.limits import Limits
from lwqc.decide.search.log import SearchLog
from lwqc.decide.search.search_model import SearchModel
from lwqc.decide.search.times import measured_times, reference_ms
from lwqc.plans.bounds import Amount
from lwqc.plans.goals import Outcome


class Latency(Bounded):
    """Median time of a run on the target, where it is timed here."""

    option = "max_latency"
    name = "latency"
    unit = "ms"
    cost = "latency_ms"
    noisy = True
    shortens = True
    short = "ms"

    def unmeasured(self, job: Job) -> str:
        """What the target says."""
        reason = job.target.unmeasured()
        return f": target {job.target.name} is not timed here: {reason}" if reason else ""

    def outcomes(self, bound: Amount, reached: Reached) -> Sequence[Outcome]:
        """One for each shape."""
        rows = reached.report.latencies
        return latency_outcomes(
            bound, [(r.shape, r.before.median_ms, r.reached(bound)) for r in rows]
        )

    def reference(self, work: Version, log: SearchLog) -> float:
        """Of a run of the original at the first shape. Measured once for a log."""
        return reference_ms(work, log)

    def choices(self, work: Version, limits: Limits) -> Mapping[str, Any]:
        """8-bit activations too."""
        return {"fast": True}

    def prepare(self, found: SearchModel, log: SearchLog) -> None:
        """By the times of single sites, measured once for a log."""
        found.space.predict(self.cost, measured_times(found, log))

    def real(self, name: str, done: Compressed, log: SearchLog) -> float:
        """As a share of the original's, at the same moment."""
        share = log.fact(f"time of {name}", lambda: time_share(done.work, done.model))
        return float(share) * reference_ms(done.work, log)


BUDGET = Latency()
