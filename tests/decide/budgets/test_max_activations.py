"""Bytes of activations that are needed at once, as a budget."""

from __future__ import annotations

from lwqc.decide.allocators.evolutionary import Settings
from lwqc.decide.budgets.max_activations import BUDGET
from lwqc.decide.compress import compress_version, open_version
from lwqc.decide.search.control import EFFORTS, SearchControl
from lwqc.decide.search.log import SearchLog
from lwqc.plans.goals import Goals
from tests.build import Row, model, normal
from tests.decide.search.searched import DATA, opened


def test_the_widest_moment_counts() -> None:
    """The product's output is alive with the stream that it is added to."""
    rows: list[Row] = [
        ("MatMul", ["x", "w"], "a", {}),
        ("MatMul", ["a", "up"], "b", {}),
        ("Relu", ["b"], "c", {}),  # writes over b
        ("MatMul", ["c", "down"], "d", {}),
        ("Add", ["a", "d"], "y", {}),
    ]
    stored = {"w": normal(8, 8), "up": normal(8, 32), "down": normal(32, 8)}
    net = model(rows, stored, {"x": [2, 8]}, ["y"])
    work = open_version(net, data="random:2")
    assert BUDGET.reference(work, SearchLog()) == 4 * 2 * (8 + 32 + 8)


def test_a_budget_is_met_and_reported(monkeypatch, tmp_path) -> None:
    quick = Settings(generations=2, offspring=4, survivors=(2,))
    monkeypatch.setitem(EFFORTS, "low", quick)
    done = compress_version(
        opened(), Goals(max_activations="0.6"), "auto", SearchControl(effort="low")
    )
    (outcome,) = done.save(tmp_path / "out.onnx").outcomes
    assert (outcome.name, outcome.unit, outcome.met) == ("activations", "bytes", True)
    assert outcome.reached > 0.5 * outcome.asked
    assert done.decisions.prune is not None
    again = open_version(tmp_path / "out.onnx", data=DATA)
    assert BUDGET.reference(again, SearchLog()) == outcome.reached
