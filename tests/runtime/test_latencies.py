"""Times of models side by side."""

from __future__ import annotations

import pytest

from lwqc.compile.result import ShapeLatency
from lwqc.plans.bounds import Amount
from lwqc.runtime import measure


def side_by_side(monkeypatch, *turns):
    """Latencies of models whose runs took these seconds, [models][rounds][runs]."""
    monkeypatch.setattr(measure, "time_turns", lambda *_, **__: list(turns))
    return measure.latencies([None] * len(turns), {})


def test_a_ratio_is_that_of_the_same_rounds(monkeypatch):
    """A machine that is busy for a while is so for both; medians may fall on either side of it."""
    calm, busy = [[0.002, 0.002], [0.006, 0.006]]
    rounds = [calm, busy, busy, busy]
    faster = [[t / 1.1 for t in turn] for turn in (calm, calm, busy, busy)]
    # The second round of the faster one came when it was calm again.
    first, other = side_by_side(monkeypatch, rounds, faster)
    assert first.relative == 1
    assert first.median_ms / other.median_ms > 1.6
    row = ShapeLatency("x", first, other)
    assert row.speedup == pytest.approx(1.1)
    assert row.reached(Amount(0.5, relative=True)) == pytest.approx(first.median_ms / 1.1)
    assert row.reached(Amount(3.0, relative=False)) == other.median_ms


def test_percentiles_are_of_all_runs(monkeypatch):
    (alone,) = side_by_side(monkeypatch, [[0.001, 0.002], [0.003, 0.004], [0.005]])
    assert (alone.median_ms, alone.runs, alone.relative) == (3.0, 5, 1.0)
    assert alone.p10_ms < alone.median_ms < alone.p90_ms
