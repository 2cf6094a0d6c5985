"""Whether the models of a build may be deployed: bounds checked on what their steps measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import BaseModel

from lwqc.cli.pipeline.document import Gates
from lwqc.compile.outcomes import drop_outcome, latency_outcomes, size_outcome
from lwqc.plans.bounds import Amount
from lwqc.plans.goals import Outcome


@dataclass(frozen=True)
class Gate:
    """One bound. outcome: None where nothing was measured, for the reason that `missing` gives."""

    name: str
    outcome: Outcome | None
    missing: str = ""

    @property
    def met(self) -> bool:
        """Whether it is shown to hold."""
        return self.outcome is not None and self.outcome.met

    @property
    def text(self) -> str:
        """The bound and what was reached, in a line."""
        if self.outcome is None:
            return f"{self.name}: not measured: {self.missing}"
        o = self.outcome
        return f"{o.name}: asked {o.asked:.6g}, reached {o.reached:.6g} {o.unit}".rstrip()

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        values = {} if self.outcome is None else asdict(self.outcome)
        return {"name": self.name, **values, "met": self.met, "missing": self.missing}


class _Time(BaseModel):
    median_ms: float
    relative: float | None = None  # reports of earlier versions have none


class _Latency(BaseModel):
    shape: str
    before: _Time
    after: _Time

    def reached(self, bound: Amount) -> float:
        """Milliseconds, as `ShapeLatency.reached`."""
        own, first = self.after.relative, self.before.relative
        if not bound.relative or own is None or first is None:
            return self.after.median_ms
        return self.before.median_ms * own / first


class _Measured(BaseModel):
    """What gates look at in a report, see `lwqc.compile.result.Report`."""

    source_bytes: int
    output_bytes: int
    worst: float | None
    latencies: list[_Latency]
    unmeasured: str


def checked(gates: Gates, report: Any) -> list[Gate]:
    """Each gate against the report of a step, as JSON holds it."""
    if gates == Gates():
        return []
    return list(_checked(gates, _Measured.model_validate(report)))


def _checked(gates: Gates, found: _Measured) -> Iterator[Gate]:
    goals = gates.goals
    if goals.max_size is not None:
        yield _of(size_outcome(goals.max_size, found.source_bytes, found.output_bytes))
    if goals.max_drop is not None:
        # No number is as bad as can be: JSON has none for infinity.
        drop = found.worst
        why = "the report holds no finite loss"
        yield Gate("drop", None, why) if drop is None else _of(drop_outcome(goals.max_drop, drop))
    latency = goals.bounds.get("max_latency")
    if latency is not None:
        rows = [(r.shape, r.before.median_ms, r.reached(latency)) for r in found.latencies]
        if not rows:
            yield Gate("latency", None, found.unmeasured or "the target is not timed here")
        yield from map(_of, latency_outcomes(latency, rows))


def _of(outcome: Outcome) -> Gate:
    return Gate(outcome.name, outcome)
