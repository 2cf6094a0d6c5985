"""`--weight-outputs`: how much the loss of each output counts."""

from __future__ import annotations

import json

import numpy as np
import pytest

import lwqc
from lwqc.errors import InputError
from lwqc.model import io
from lwqc.plans.option_texts import parse_bounds, parse_weights
from lwqc.runtime.measure import worst_drop
from lwqc.runtime.stats.divergence import LossMeter
from tests.build import model, normal


@pytest.fixture
def two(tmp_path, monkeypatch):
    """One output that 4 bits hardly change, and one that they do."""
    coarse = normal(64, 64, seed=1)
    coarse[::8] *= 40  # blocks whose small weights have no codes left
    nodes = [("MatMul", ["x", "w1"], "good", {}), ("MatMul", ["x", "w2"], "bad", {})]
    made = model(nodes, {"w1": normal(64, 64), "w2": coarse}, {"x": ["n", 64]}, ["good", "bad"])
    io.save(made, tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", x=normal(32, 64, seed=2))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "m.onnx"


def drops(**options):
    report = lwqc.quantize("m.onnx", bits=4, data="d.npz", **options).save("o.onnx")
    return report.drop, {name: d.drop for name, d in report.divergence.items()}


def test_the_loss_is_that_of_the_worst_after_weights(two):
    drop, each = drops()
    assert drop == max(each.values()) == each["bad"]
    drop, again = drops(weight_outputs={"bad": 0})
    assert again == each  # which are told as they are
    assert drop == each["good"]
    assert drops(weight_outputs={"bad": 0.5, "good": 100})[0] == 100 * each["good"]


def test_bounds_are_of_the_weighted_loss(two, run):
    line = ["quantize", "m.onnx", "-o", "o.onnx", "--bits", "4", "--data", "d.npz"]
    _, each = drops()
    bound = ["--max-drop", str((each["good"] + each["bad"]) / 2)]
    assert run(*line, *bound)[0] == 3
    assert run(*line, *bound, "--weight-outputs", "bad=0")[0] == 0
    assert run(*line, *bound, "--weight-outputs", "bad=1,good=0")[0] == 3


def test_each_output_has_a_bound_of_its_own(two, run):
    _, each = drops()
    good, bad = (f"{each[name] * 110:.6f}%" for name in ("good", "bad"))
    line = ["quantize", "m.onnx", "-o", "o.onnx", "--bits", "4", "--data", "d.npz", "--json"]
    assert run(*line, "--max-drop", good)[0] == 3
    code, text, err = run(*line, "--max-drop", good, "--bound-outputs", f"bad={bad}")
    assert code == 0, err
    outcomes = {o["name"]: o for o in json.loads(text)["outcomes"]}
    assert outcomes["drop of bad"]["reached"] == each["bad"]
    assert outcomes["drop of bad"]["asked"] == pytest.approx(1.1 * each["bad"], rel=1e-4)
    less = f"bad={each['bad'] * 90:.6f}%"
    code, text, _ = run(*line, "--max-drop", good, "--bound-outputs", less)
    assert code == 3
    report = json.loads(text)
    assert [o["name"] for o in report["outcomes"] if o["reached"] > o["asked"]] == ["drop of bad"]
    assert (report["drop"], report["worst"]) == (each["good"], each["bad"])
    code, text, err = run("verify", "m.onnx", "o.onnx", "--data", "d.npz", "--bound-outputs", less)
    assert code == 3
    assert "drop of bad" in err
    assert f"drop {each['good']:.5g} on" in text


def test_a_bound_is_for_one_step_and_in_its_plan(two):
    first = lwqc.quantize("m.onnx", bits=4, data="d.npz")
    bounded = lwqc.compress(first, max_drop="50%", bound_outputs="bad=5 %")
    assert bounded.plan.budgets["bound_outputs"] == "bad=0.05"
    assert bounded.work.job.weights.bounds == {"bad": 0.05}
    after = lwqc.compress(bounded, max_drop="50%")
    assert after.work.job.weights.bounds == {}


def test_a_gate_is_for_all_outputs(two, run, tmp_path):
    (tmp_path / "b.toml").write_text(
        'model = "m.onnx"\n[[step]]\nrun = "quantize"\nbits = "4"\ndata = "d.npz"\n'
        'output = "o.onnx"\nmax_drop = "90%"\nbound_outputs = ["bad=90%"]\n'
        '[gates]\nmax_drop = "GATE"\n'
    )
    text = (tmp_path / "b.toml").read_text()
    _, each = drops()
    for factor, expected in ((0.9, 3), (1.1, 0)):
        gate = f"{100 * factor * each['bad']:.6f}%"
        (tmp_path / "b.toml").write_text(text.replace("GATE", gate))
        code, out, err = run("run", "b.toml")
        assert code == expected, out + err


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"max_drop": 0.01, "bound_outputs": {"other": "1%"}}, "no output 'other'"),
        ({"bound_outputs": {"other": "1%"}}, "--bound-outputs: the model has no output"),
        ({"bound_outputs": "bad=1%,bad=2%"}, "an output has two bounds"),
        ({"max_drop": 0, "bound_outputs": {"bad": "1%"}}, "no output may lose anything"),
        ({"max_drop": 0.01, "bound_outputs": {"bad": 0}}, "must be above 0"),
        ({"max_drop": 0.01, "bound_outputs": {"bad": "much"}}, "a share such as 5%"),
        ({"max_drop": 0.01, "bound_outputs": {"bad": 0.1}, "weight_outputs": {"bad": 2}},
         "--weight-outputs says what it counts"),
        ({"max_drop": 0.01, "bound_outputs": {"bad": 0.1}, "metric": lambda run: 1.0},
         "--metric takes the place"),
    ],
)  # fmt: skip
def test_bounds_that_are_none_are_refused(two, options, why):
    with pytest.raises(InputError, match=why):
        lwqc.compress("m.onnx", data="d.npz", **options)


def test_searches_spend_bits_where_it_counts(two):
    """Three quarters of what 8 bits take: one of two weights gets more than the other."""
    bits = {}
    for name, weights in (("w1", {"bad": 0}), ("w2", {"good": 0})):
        done = lwqc.compress(
            "m.onnx", recipe="knapsack", avg_bits=6.5, data="d.npz", weight_outputs=weights
        )
        found = {site: entry.weight.bits for site, entry in done.plan.quantize.items()}
        bits[name] = found[name], min(found.values())
    assert all(own > least for own, least in bits.values()), bits


def test_weights_travel_along_until_a_metric_is_given(two):
    first = lwqc.compress("m.onnx", recipe="clean", data="d.npz", weight_outputs={"bad": 0})
    assert first.quantize(bits=4).work.job.weights == {"bad": 0}
    other = first.quantize(bits=4, metric=lambda run: 1.0)
    assert other.work.job.weights == {}


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (
            {"bda": 1},
            "the model has no output 'bda'; expected one of good, bad; did you mean 'bad'",
        ),
        ({"bad": -1}, "bad=-1: expected a number of 0 or more"),
        ({"bad": 0, "good": 0}, "no output counts"),
    ],
)
def test_what_is_no_weight(two, weights, message):
    with pytest.raises(InputError, match=message):
        lwqc.quantize("m.onnx", weight_outputs=weights)


def test_weights_beside_a_metric_are_refused(two):
    with pytest.raises(InputError, match="which --metric takes the place of"):
        lwqc.quantize("m.onnx", weight_outputs={"bad": 0}, metric=lambda run: 1.0)


def test_texts():
    assert parse_weights(["a=2,b=0.5", "c=x=0"]) == {"a": 2, "b": 0.5, "c=x": 0}
    named = '{"1": "one", "2": "two"}'  # as exporters of keyed results write it
    assert parse_weights([f"a=2,{named}=3"]) == {"a": 2, named: 3}
    assert parse_bounds([f"{named}=3%,b=1%"]) == {named: 0.03, "b": 0.01}
    for text in ("a", "a=", "a=x", "b=1,a=x"):
        with pytest.raises(InputError, match="expected OUTPUT=NUMBER"):
            parse_weights([text])


def test_an_output_that_does_not_count_may_be_infinitely_far():
    meter = LossMeter()
    meter.add(np.ones((2, 3), np.float32), np.full((2, 3), np.nan, np.float32))
    assert worst_drop({"a": meter.result()}, {"a": 0.0}) == 0
