"""Sites are left in float in order of what they cost at the outputs, not of their own rounding."""

from __future__ import annotations

import numpy as np
import pytest

from lwqc.decide import planning
from lwqc.decide.compress import open_workspace
from tests.build import Row, model, normal


@pytest.fixture
def work():
    """A branch whose input has an outlier, and that hardly matters, beside one that does."""
    rows: list[Row] = [
        ("Mul", ["x", "outlier"], "wide", {}),
        ("Conv", ["wide", "w0"], "a", {}),
        ("Mul", ["a", "little"], "b", {}),
        ("Conv", ["x", "w1"], "c", {}),
        ("Add", ["b", "c"], "y", {}),
    ]
    outlier = np.ones((1, 8, 1, 1), np.float32)
    outlier[0, 0] = 300
    weights = {
        "outlier": outlier,
        "little": np.float32(1e-6),
        "w0": normal(16, 8, 3, 3, seed=0),
        "w1": normal(16, 8, 3, 3, seed=1),
    }
    net = model(rows, weights, {"x": [1, 8, 9, 9]}, ["y"])
    return open_workspace(net, data=[{"x": normal(1, 8, 9, 9, seed=i)} for i in range(3)])


def test_what_counts_is_the_loss_at_the_outputs(work) -> None:
    plan = planning.calibrate(work, planning.uniform(work, 8, "static"), "minmax")
    assert {e.activation for e in plan.quantize.values()} == {"static"}
    assert planning.by_activation_error(work, plan, ["w0", "w1"]) == ["w0", "w1"]
    assert planning.by_output_error(work, plan, ["w0", "w1"]) == ["w1", "w0"]


def test_the_rounding_decides_where_there_are_too_many_sites(work, monkeypatch) -> None:
    plan = planning.calibrate(work, planning.uniform(work, 8, "static"), "minmax")
    monkeypatch.setattr(planning, "_MOST_ALONE", 1)
    assert planning.by_output_error(work, plan, ["w0", "w1"]) == ["w0", "w1"]
