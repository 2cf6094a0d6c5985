"""A candidate on the trial session computes what the model made from it computes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from lwqc.compile.execute import execute
from lwqc.decide.allocators.evolutionary import Settings
from lwqc.decide.compress import compress_version, open_version
from lwqc.decide.scores.channels.nested import NestedRefit
from lwqc.decide.search.control import EFFORTS, SearchControl
from lwqc.decide.search.joint_plan import planned
from lwqc.decide.search.trial_model import TrialModel, nested_order
from lwqc.model import io
from lwqc.plans.goals import Goals
from lwqc.runtime.session import Session
from tests.build import model, normal
from tests.decide.search.searched import changed, found, trial


def made(candidate):
    """The model that a candidate stands for, without compensation."""
    plan = planned(found(), candidate, "", compensate=False)
    return execute(found().work, Goals(), plan)


def plain() -> TrialModel:
    """Without closed-form compensation, so that removed channels are just zero."""
    spec = found().spec
    tensors = tuple(dataclasses.replace(t, gram=None) for t in spec.tensors)
    return TrialModel(dataclasses.replace(spec, tensors=tensors))


@pytest.mark.parametrize(
    "levels",
    [
        {"format_0": 0, "format_2": 0, "format_4": 1},
        {"width_0": 2, "width_1": 3},
        {"branch_0": 0},
        {"format_1": 0, "format_3": 1, "width_0": 1, "width_2": 4, "branch_1": 0},
    ],
    ids=["formats", "widths", "branch", "all"],
)
def test_computes_what_the_compressed_model_computes(levels) -> None:
    candidate = changed(**levels)
    feeds = found().spec.batches[0]
    expected = Session(made(candidate).model)(feeds)
    outputs = plain().outputs(candidate, feeds)
    assert outputs.keys() == expected.keys()
    for name, value in expected.items():
        error = np.linalg.norm(outputs[name] - value) / np.linalg.norm(value)
        assert error < 1e-5 + 0.02 * any(k.startswith("format") for k in levels)
    reference = Session(found().work.model)(feeds)
    far = np.linalg.norm(expected[name] - reference[name]) / np.linalg.norm(value)
    assert error < far / 3


def test_other_weights_make_up_for_removed_channels() -> None:
    candidate = changed(width_0=3, width_1=3)
    assert trial().score(candidate, 2) < 0.7 * plain().score(candidate, 2)


def test_one_factorisation_gives_what_solving_for_each_width_does() -> None:
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((2, 300, 24)) * np.linspace(0.1, 3, 24)
    gram = np.einsum("gni,gnj->gij", inputs, inputs) / 300
    weight, order = rng.standard_normal((10, 24)), rng.permutation(24)
    refit = NestedRefit(weight, gram, order)
    for count in (1, 7, 23, 24):
        kept = np.sort(order[:count])
        expected = []
        for part, matrix in zip(weight.reshape(2, 5, 24), gram, strict=True):
            damped = matrix + 0.01 * np.trace(matrix) / 24 * np.eye(24)
            expected.append(part @ damped[:, kept] @ np.linalg.inv(damped[np.ix_(kept, kept)]))
        assert np.allclose(refit(count), np.concatenate(expected), atol=1e-9)


def test_most_widths_are_nested_and_come_from_one_factorisation() -> None:
    spec = found().spec
    cut = [t for t in spec.tensors if t.gram is not None and t.cuts]
    orders = [nested_order(t, spec.keeps) for t in cut]
    assert sum(o is not None for o in orders) >= 3
    for tensor, order in zip(cut, orders, strict=True):
        assert order is None or sorted(order) == list(range(tensor.matrix.shape[1]))


def test_the_first_stage_looks_at_a_part_of_a_batch() -> None:
    spec = found().spec
    whole = list(found().work.job.data.fit.halves()[1])
    for name, value in whole[0].items():
        together = np.concatenate([spec.batches[0][name], spec.batches[1][name]])
        assert np.array_equal(together, value)
    assert spec.stages[0] == 1
    assert spec.rows[0] <= sum(spec.rows) / 16
    assert sum(spec.rows[: spec.stages[1]]) >= sum(spec.rows) / 4
    assert spec.stages[2] == len(spec.batches)


def test_the_original_diverges_by_nothing_and_stages_see_more_and_more() -> None:
    assert trial().score(found().space.top, 2) == 0
    assert found().spec.stages == tuple(sorted(found().spec.stages))
    candidate = changed(format_3=0)
    scores = [trial().score(candidate, stage) for stage in range(3)]
    assert all(s > 0 for s in scores)


def test_scores_do_not_depend_on_the_number_of_threads() -> None:
    candidate = changed(format_0=0, width_0=2)
    one, two = (TrialModel(found().spec, threads=n) for n in (1, 2))
    assert one.score(candidate, 2) == two.score(candidate, 2)


@pytest.mark.parametrize("seed", range(4))
def test_predicted_bytes_are_those_of_the_file(seed) -> None:
    rng, space = np.random.default_rng(seed), found().space
    candidate = tuple(
        int(rng.integers(0, size)) if item.kind == "format" or rng.random() < 0.2 else item.top
        for item, size in zip(space.items, space.sizes, strict=True)
    )
    real = io.serialized_bytes(made(candidate).model)
    assert space.cost(candidate)["size_bytes"] == pytest.approx(real, rel=0.03)


def test_costs_of_the_original_and_of_less() -> None:
    space = found().space
    whole = space.cost(space.top)
    assert whole["size_bytes"] == pytest.approx(found().work.original.size_bytes, rel=0.01)
    assert space.cost(changed(width_0=0))["macs"] < whole["macs"]
    assert space.cost(changed(branch_0=0))["macs"] < whole["macs"]
    assert space.cost(changed(format_0=0))["macs"] == whole["macs"]
    assert space.predicted(space.top) == 0
    assert space.predicted(changed(branch_0=0)) > space.predicted(changed(format_0=0)) > 0


def test_levels_go_from_the_strongest_to_untouched() -> None:
    for item in found().space.items:
        assert list(item.errors) == sorted(item.errors, reverse=True)
        assert item.errors[-1] == 0
    assert {i.kind for i in found().space.items} == {"format", "width", "branch"}


def test_a_weight_whose_result_nothing_reads_is_no_part_of_a_trial(monkeypatch) -> None:
    rows = [
        ("MatMul", ["x", "w"], "a", {}),
        ("Relu", ["a"], "b", {}),
        ("MatMul", ["b", "v"], "y", {}),
        ("MatMul", ["b", "dead"], "nobody", {}),
    ]
    stored = {"w": normal(40, 64), "v": normal(64, 40), "dead": normal(64, 48)}
    net = model(rows, stored, {"x": ["n", 40]}, ["y"])
    monkeypatch.setitem(EFFORTS, "low", Settings(generations=2, offspring=4, survivors=(2,)))
    work = open_version(net, data="random:8")
    done = compress_version(work, Goals(max_macs="0.6"), "auto", SearchControl(effort="low"))
    assert done.plan.prune is not None
