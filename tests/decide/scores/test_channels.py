"""Channel criteria against their formulas."""

import numpy as np
import onnx_ir as ir
import pytest

from lwqc.compile.prunable import Prunable
from lwqc.decide.scores.channels.cfsp import cfsp
from lwqc.decide.scores.channels.fpgm import fpgm
from lwqc.decide.scores.channels.magnitude import l1, l2
from lwqc.decide.scores.channels.obs import layers, obs_ranking
from lwqc.decide.scores.channels.ranking import Ranking, aggregated, members, normalised
from lwqc.decide.scores.channels.score import Observed
from lwqc.decide.scores.channels.wanda import wanda
from lwqc.graph.readers import find_readers
from lwqc.model.io import read_array
from tests.build import model, normal

W1, W2 = normal(8, 6), normal(6, 5, seed=1)


@pytest.fixture
def groups():
    built = model(
        [
            ("MatMul", ["x", "w1"], "a", {}),
            ("Relu", ["a"], "b", {}),
            ("MatMul", ["b", "w2"], "y", {}),
        ],
        {"w1": W1, "w2": W2},
        {"x": ["batch", 8]},
        ["y"],
    )
    return Prunable(built).groups


def test_magnitudes_average_over_the_weights_of_a_group(groups):
    (group,) = groups
    found = aggregated(group, read_array, l1)
    assert found == pytest.approx((np.abs(W1).sum(0) + np.abs(W2).sum(1)) / 2)
    found = aggregated(group, read_array, l2)
    assert found == pytest.approx((np.square(W1).sum(0) + np.square(W2).sum(1)) / 2)


def test_fpgm_is_the_sum_of_distances(groups):
    (group,) = groups
    member = next(m for m in members(group, read_array) if m.occurrence.name == "w1")
    expected = [sum(np.linalg.norm(W1[:, i] - W1[:, j]) for j in range(6)) for i in range(6)]
    assert fpgm(member) == pytest.approx(expected, rel=1e-5)


def test_wanda_weighs_by_the_input(groups):
    (group,) = groups
    (reader,) = [r for r in find_readers(groups) if r.operand.weight.name == "w2"]
    norms = np.arange(1.0, 7.0)
    assert wanda(group, [(reader, norms[None])], read_array) == pytest.approx(
        np.abs(W2).sum(1) * norms, rel=1e-6
    )
    assert wanda(group, [], read_array) is None


def test_cfsp_adds_up_parts_of_the_weights(groups):
    """Divided along the axis of the channels: the weights do not cancel."""
    (group,) = groups
    (reader,) = [r for r in find_readers(groups) if r.operand.weight.name == "w2"]
    producers = [m for m in members(group, read_array) if m.occurrence.name == "w1"]
    norms = np.arange(1.0, 7.0)
    seen = Observed(reader, 10 * np.diag(norms**2)[None], 10)
    met = np.abs(W2) * norms[:, None]
    parts = (met / met.sum(0)).mean(1) + (np.abs(W1) / np.abs(W1).sum(1, keepdims=True)).mean(0)
    found = cfsp(group, [seen], producers, read_array)
    assert found == pytest.approx(parts * norms, rel=1e-6)
    assert np.ptp(found / norms) > 0.1
    assert cfsp(group, [], producers, read_array) is None


def test_normalisers():
    values = np.asarray([3.0, 1.0, 2.0])
    assert normalised(values, "mean") == pytest.approx(values / 2)
    assert normalised(values, "sum") == pytest.approx(values / 6)
    assert normalised(values, "max") == pytest.approx(values / 3)
    assert normalised(values, "lamp") == pytest.approx([1.0, 1 / 6, 2 / 5])
    assert list(Ranking.of(values).order) == [1, 2, 0]


def exact_error(weight, mean, keep):
    """Least squares by the normal equations, without any update formula."""
    target = weight @ mean[:, keep]
    fitted = target @ np.linalg.inv(mean[np.ix_(keep, keep)])
    full = np.zeros_like(weight)
    full[:, keep] = fitted
    gap = weight - full
    return np.einsum("oi,ij,oj->", gap, mean, gap)


@pytest.mark.parametrize("width", [1, 3])
def test_obs_costs_are_the_errors_that_remain_after_a_refit(width):
    channels, rows = 7, 200
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((rows, channels * width)) @ rng.standard_normal(
        (channels * width, channels * width)
    )
    gram, weight = inputs.T @ inputs, rng.standard_normal((4, channels * width))
    owner = np.repeat(np.arange(channels), width)[None]
    ranking = obs_ranking(layers(weight, gram[None], owner, rows, damp=1e-9), channels)
    mean = gram / rows
    energy = np.einsum("oi,ij,oj->", weight, mean, weight)
    singles = [
        exact_error(weight, mean, np.flatnonzero(owner[0] != c)) / energy for c in range(channels)
    ]
    assert ranking.order[0] == np.argmin(singles)
    for count in range(1, channels - 1):
        keep = np.flatnonzero(~np.isin(owner[0], ranking.order[:count]))
        expected = exact_error(weight, mean, keep) / energy
        assert ranking.cost[:count].sum() == pytest.approx(expected, rel=1e-4, abs=1e-9)


def test_obs_sees_that_one_of_two_equal_channels_is_free():
    rng = np.random.default_rng(1)
    inputs = rng.standard_normal((300, 5))
    inputs[:, 3] = inputs[:, 1]
    weight = rng.standard_normal((4, 5)) + 2
    gram = (inputs.T @ inputs)[None]
    ranking = obs_ranking(layers(weight, gram, np.arange(5)[None], 300, damp=1e-6), 5)
    assert ranking.order[0] in (1, 3)
    assert ranking.cost[0] < 1e-4
    partner = 4 - ranking.order[0]
    position = list(ranking.order).index(partner)
    assert ranking.cost[position] > 1e-2


def test_a_group_of_heads_owns_blocks_of_features():
    built = model(
        [
            ("MatMul", ["x", "w1"], "a", {}),
            ("Reshape", ["a", "s1"], "b", {}),
            ("Relu", ["b"], "c", {}),
            ("Reshape", ["c", "s2"], "d", {}),
            ("MatMul", ["d", "w2"], "y", {}),
        ],
        {
            "w1": normal(8, 12),
            "w2": normal(12, 5, seed=1),
            "s1": np.asarray([2, 3, 4], np.int64),
            "s2": np.asarray([2, 12], np.int64),
        },
        {"x": [2, 8]},
        ["y"],
    )
    groups = Prunable(built).groups
    (reader,) = [r for r in find_readers(groups) if r.operand.weight.name == "w2"]
    heads, dims = groups
    assert reader.owners(heads).tolist() == [[0] * 4 + [1] * 4 + [2] * 4]
    assert reader.owners(dims).tolist() == [[0, 1, 2, 3] * 3]
    assert isinstance(groups.analysis.graph, ir.Graph)


def test_errors_of_a_weight_that_several_layers_read_count_for_each():
    weight, x = normal(4, 8, seed=3), normal(50, 8, seed=4)
    owners = np.arange(8)[None]
    once, thrice = (
        obs_ranking(layers(weight, (x.T @ x)[None], owners, 50, count=n), 8) for n in (1, 3)
    )
    assert thrice.order.tolist() == once.order.tolist()
    assert thrice.cost[:-1] == pytest.approx(3 * once.cost[:-1])
