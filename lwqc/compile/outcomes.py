"""Bounds and what was reached, from measured numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lwqc.plans.bounds import Amount
from lwqc.plans.goals import Outcome
from lwqc.runtime.measure import NOISE
from lwqc.runtime.stats.divergence import Divergence


def size_outcome(bound: Amount, before: float, after: float) -> Outcome:
    """Of bytes of the original and of the result."""
    return Outcome("size", bound.resolve(before), after, "bytes")


def drop_outcome(bound: float, drop: float) -> Outcome:
    """Of a loss, as a fraction."""
    return Outcome("drop", bound, drop, "")


def output_outcomes(found: Mapping[str, Divergence], bounds: Mapping[str, float]) -> list[Outcome]:
    """Of what outputs with a bound of their own lost."""
    return [
        Outcome(f"drop of {name}", bounds[name], divergence.drop, "")
        for name, divergence in found.items()
        if name in bounds
    ]


def class_outcome(bound: float, worst: float) -> Outcome:
    """Of what the worst class lost, as a share of its samples."""
    return Outcome("worst class", bound, worst, "")


def latency_outcomes(bound: Amount, rows: Sequence[tuple[str, float, float]]) -> list[Outcome]:
    """Of median milliseconds (shape, original, result) at each shape served."""
    return [
        Outcome(
            "latency" if len(rows) == 1 else f"latency {shape}",
            bound.resolve(before),
            after,
            "ms",
            NOISE - 1,
        )
        for shape, before, after in rows
    ]
