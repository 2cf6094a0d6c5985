"""Sites are left in float in order of what they cost at the outputs, not of their own rounding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from lwqc.decide import planning
from lwqc.decide.compress import open_version
from lwqc.decide.site_order import (
    SiteOrder,
    _rounded_alone,
    _worst_first,
    by_activation_error,
    by_output_error,
    smallest,
)
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
    return open_version(net, data=[{"x": normal(1, 8, 9, 9, seed=i)} for i in range(3)])


def test_what_counts_is_the_loss_at_the_outputs(work) -> None:
    plan = planning.calibrate(work, planning.uniform(work, 8, "static"), "minmax")
    assert {e.activation for e in plan.quantize.values()} == {"static"}
    assert by_activation_error(work, plan, ["w0", "w1"]) == ["w0", "w1"]
    assert by_output_error(work, plan, ["w0", "w1"]).sites == ["w1", "w0"]


def test_what_static_convolutions_write_counts_too(work) -> None:
    """w1 reads what both read; of the tensors that it rounds, the one that it writes costs."""
    plan = planning.calibrate(work, planning.uniform(work, 8, "static"), "minmax")
    cost = _rounded_alone(work, plan, ["w0", "w1"])
    coarse = {
        n: r.model_copy(update={"low": -9e3, "high": 9e3}) for n, r in plan.activations.items()
    }
    written = plan.model_copy(update={"activations": {**plan.activations, "c": coarse["c"]}})
    assert cost([]) < 1e-9
    assert 1e-9 < cost(["w1"]) < _rounded_alone(work, written, ["w0", "w1"])(["w1"])


def test_what_is_known_of_one_plan_is_not_asked_for_another(work, monkeypatch) -> None:
    plan = planning.calibrate(work, planning.uniform(work, 8, "static"), "minmax")
    cost = _rounded_alone(work, plan, ["w0", "w1"])(["w1"])
    monkeypatch.delattr("lwqc.decide.site_order.statistics_session")
    assert _rounded_alone(work, plan, ["w1"])(["w1"]) == cost
    with pytest.raises(NameError):
        _rounded_alone(work, plan, ["w1"])([])


class Costs:
    """Sites whose costs add up, and how many trials were made of them."""

    def __init__(self, costs: dict[str, float]) -> None:
        self.costs, self.trials = costs, 0

    def __call__(self, group: Sequence[str]) -> float:
        self.trials += 1
        return sum(self.costs[site] for site in group)


def _costs(count: int, worst: dict[int, float]) -> Costs:
    return Costs({f"s{i:03}": worst.get(i, 1e-4 * (i % 7)) for i in range(count)})


def test_the_worst_are_found_by_their_groups() -> None:
    costs = _costs(36, {31: 0.5, 4: 0.2, 17: 0.1})
    order = _worst_first(list(costs.costs), costs, 0.75)
    assert order[:3] == ["s031", "s004", "s017"]
    assert sorted(order) == sorted(costs.costs)
    assert costs.trials == 6 + 3 * 6


def test_no_more_is_tried_than_has_to_go() -> None:
    costs = _costs(36, {31: 0.5, 4: 0.2, 17: 0.1})
    order = _worst_first(list(costs.costs), costs, 0.3)
    assert order[0] == "s031"
    assert costs.trials == 6 + 6
    assert order[1:7] == [f"s{i:03}" for i in range(6)]  # the next group, not looked into


def test_all_are_ordered_where_all_have_to_go() -> None:
    costs = _costs(36, {31: 0.5, 4: 0.2})
    order = _worst_first(list(costs.costs), costs, np.inf)
    assert [costs.costs[s] for s in order] == sorted(costs.costs.values(), reverse=True)
    assert costs.trials == 6 + 36


def test_trials_are_bounded() -> None:
    costs = _costs(400, {399: 0.5})
    order = _worst_first(list(costs.costs), costs, np.inf)
    assert order[0] == "s399"
    assert len(order) == len(set(order)) == 400
    assert costs.trials <= 64


def test_what_cannot_be_run_comes_first_and_ends_nothing() -> None:
    costs = _costs(9, {7: np.inf, 2: 0.4})
    assert _worst_first(list(costs.costs), costs, 0.1)[:2] == ["s007", "s002"]


def test_the_rounding_decides_where_the_loss_is_a_metric(work) -> None:
    plan = planning.calibrate(work, planning.uniform(work, 8, "static"), "minmax")
    judged = replace(work, job=replace(work.job, metric=lambda session: 1.0))
    assert by_output_error(judged, plan, ["w0", "w1"]) == SiteOrder(["w0", "w1"])


@pytest.mark.parametrize("guess", [1, 7, 20, 99])
@pytest.mark.parametrize("answer", [1, 6, 7, 8, 20])
def test_the_smallest_is_found_from_any_guess(guess: int, answer: int) -> None:
    asked: list[int] = []

    def holds(number: int) -> bool:
        asked.append(number)
        return number >= answer

    assert smallest(1, 20, guess, holds) == answer
    assert len(asked) == len(set(asked))
    assert 20 not in asked
    if guess == answer:
        assert len(asked) <= 2


def test_as_many_go_as_the_others_cost_too_much() -> None:
    cost = {"a": 5.0, "b": 3.0, "c": 1.0, "d": 0.5}
    order = SiteOrder(list(cost), lambda sites: sum(cost[s] for s in sites))
    assert [order.expected(limit) for limit in (9, 4.5, 1.5, 0.5, 0)] == [1, 1, 2, 3, 4]
    assert SiteOrder(list(cost)).expected(4.5) == 2
