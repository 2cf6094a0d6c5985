"""Scores of branches against plain numpy."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from scipy.special import softmax
from scipy.stats import entropy

from lwqc.decide.scores.branches.ablation import Ablation
from lwqc.decide.scores.branches.similarity import branch_effects, void_rates
from lwqc.errors import InputError
from lwqc.graph.branch_kinds import branch_tree
from lwqc.graph.branches import residual_branches
from lwqc.runtime.stats.branch_effect import BranchEffect
from lwqc.runtime.stats.collect import collect
from lwqc.runtime.stats.output_divergence import OutputDivergence
from tests.build import model, normal
from tests.runtime.stats.conftest import capture, runner

ROWS = [
    ("MatMul", ["x", "w0"], "f0", {}),
    ("Add", ["x", "f0"], "y0", {}),
    ("MatMul", ["y0", "w1"], "h1", {}),
    ("Relu", ["h1"], "f1", {}),
    ("Add", ["y0", "f1"], "y1", {}),
    ("MatMul", ["y1", "w2"], "f2", {}),
    ("Add", ["y1", "f2"], "y2", {}),
]
SCALES = (0.5, 0.05, 0.2)
WEIGHTS = {f"w{i}": normal(6, 6, seed=i, scale=s) for i, s in enumerate(SCALES)}
DATA = [{"x": normal(2, n, 6, seed=n) ** 3} for n in (3, 5, 4)]
TENSORS = ["x", "f0", "y0", "f1", "y1", "f2", "y2"]


@pytest.fixture(scope="module")
def net() -> ir.Model:
    return model(ROWS, WEIGHTS, {"x": ["b", "t", 6]}, ["y2"])


@pytest.fixture(scope="module")
def tokens(net) -> dict[str, np.ndarray]:
    """Every tensor as [tokens, 6], in double precision."""
    runs = capture(net, TENSORS, DATA)
    return {n: np.concatenate([r[n].reshape(-1, 6) for r in runs]).astype(float) for n in TENSORS}


def cosines(a, b):
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def test_effects(net, tokens) -> None:
    branches = residual_branches(net.graph)
    units = {b.name: [b] for b in branches} | {"block": branches[:2]}
    found = branch_effects(net, units, DATA, runner)
    ends = {"y0": ("x", "y0"), "y1": ("y0", "y1"), "y2": ("y1", "y2"), "block": ("x", "y1")}
    for name, (start, end) in ends.items():
        x, y = tokens[start], tokens[end]
        assert found[name].count == len(x)
        assert found[name].cosine == pytest.approx(cosines(x, y).mean(), abs=1e-6)
        assert found[name].lim == -found[name].cosine
        angle = np.arccos(np.clip(cosines(x, y), -1, 1)).mean() / np.pi
        assert found[name].angular == pytest.approx(angle, abs=1e-6)
        ratio = (np.linalg.norm(y - x, axis=1) / np.linalg.norm(x, axis=1)).mean()
        assert found[name].norm_ratio == pytest.approx(ratio, rel=1e-5)


def test_parallel_branches_are_measured_for_themselves() -> None:
    rows = [
        ("MatMul", ["x", "w0"], "f", {}),
        ("MatMul", ["x", "w2"], "g", {}),
        ("Add", ["f", "g"], "s", {}),
        ("Add", ["x", "s"], "y", {}),
    ]
    net = model(rows, WEIGHTS, {"x": ["b", "t", 6]}, ["y"])
    found = branch_effects(net, {b.name: [b] for b in residual_branches(net.graph)}, DATA, runner)
    x = np.concatenate([feeds["x"].reshape(-1, 6) for feeds in DATA]).astype(float)
    for name, weight in (("f", "w0"), ("g", "w2")):
        expected = cosines(x, x + x @ WEIGHTS[weight]).mean()
        assert found[name].cosine == pytest.approx(expected, abs=1e-6)


def test_angles_of_nearly_parallel_vectors_and_zero_vectors() -> None:
    x = normal(50, 16)
    delta = 1e-4 * normal(50, 16, seed=1)
    delta[0] = x[0] = 0
    rows = [("Identity", ["x"], "a", {}), ("Identity", ["d"], "b", {})]
    net = model(rows, {}, {"x": ["n", 16], "d": ["n", 16]}, ["a", "b"])
    effect = BranchEffect("a", delta="b")
    found = collect(net, [effect], [{"x": x, "d": delta}], runner)[effect]
    wide, far = x[1:].astype(float), (x + delta)[1:].astype(float)
    sines = np.sqrt(1 - np.clip(cosines(wide, far), -1, 1) ** 2)
    assert found.angular == pytest.approx(np.arcsin(sines).sum() / 50 / np.pi, rel=2e-3)
    assert np.isfinite(found.norm_ratio)


def test_void_rates(net, tokens) -> None:
    units = {b.name: [b] for b in residual_branches(net.graph)}
    found = void_rates(net, units, DATA, runner)
    norm = {n: np.linalg.norm(v, axis=1) for n, v in tokens.items()}
    growth = [norm["y0"] - norm["x"], norm["y1"] - norm["y0"], norm["y2"] - norm["y1"]]
    spread = np.maximum(growth[0], growth[1]) - np.minimum(growth[0], growth[1])
    assert found["y0"] == 0
    assert found["y1"] == pytest.approx((growth[1] < 0).mean())
    assert found["y2"] == pytest.approx((growth[2] < 0.8 * spread).mean())
    assert 0 < found["y2"] < 1


def test_void_rates_start_anew_where_images_shrink() -> None:
    rows = [
        ("Conv", ["x", "k"], "f", {"pads": [1, 1, 1, 1]}),
        ("Add", ["x", "f"], "y", {}),
        ("MaxPool", ["y"], "p", {"kernel_shape": [2, 2], "strides": [2, 2]}),
        ("Conv", ["p", "k"], "g", {"pads": [1, 1, 1, 1]}),
        ("Add", ["p", "g"], "z", {}),
    ]
    net = model(rows, {"k": normal(3, 3, 3, 3)}, {"x": ["b", 3, 8, 8]}, ["z"])
    units = {b.name: [b] for b in branch_tree(net.graph).branches and residual_branches(net.graph)}
    assert void_rates(net, units, [{"x": normal(1, 3, 8, 8)}], runner) == {"y": 0, "z": 0}


P, Q = normal(4, 3, 7), normal(4, 3, 7, seed=1)


def test_divergences() -> None:
    p, q = (softmax(v.astype(float), -1).reshape(-1, 7) for v in (P, Q))
    middle = (p + q) / 2
    js = (entropy(p, middle, axis=1) + entropy(q, middle, axis=1)).mean() / 2
    a, b = P.reshape(-1, 7).astype(float), Q.reshape(-1, 7).astype(float)
    expected = {
        "kl": entropy(p, q, axis=1).mean(),
        "js": js,
        "angular": np.arccos(cosines(a, b)).mean() / np.pi,
        "norm": ((a - b) ** 2).sum() / (a**2).sum(),
    }
    for measure, value in expected.items():
        assert OutputDivergence(P, measure)(Q) == pytest.approx(value)
        assert OutputDivergence(P, measure)(P) == pytest.approx(0, abs=1e-7)
        assert OutputDivergence(P, measure)(np.full_like(Q, np.nan)) == np.inf
    masked = P.copy()
    masked[..., 2] = -np.inf
    assert 0 < OutputDivergence(masked, "js")(np.where(np.isinf(masked), masked, Q)) < np.log(2)
    far = OutputDivergence(np.array([[900.0, 0]]), "js")(np.array([[0.0, 900]]))
    assert far == pytest.approx(np.log(2))


def test_classes_of_images_are_axis_1() -> None:
    a, b = normal(2, 5, 3, 3), normal(2, 5, 3, 3, seed=1)
    moved = OutputDivergence(np.moveaxis(a, 1, -1).reshape(-1, 5), "js")
    expected = moved(np.moveaxis(b, 1, -1).reshape(-1, 5))
    assert OutputDivergence(a, "js")(b) == pytest.approx(expected)


def test_ablation_takes_each_run_once() -> None:
    runs = []

    def without(removed):
        def run(feeds):
            runs.append(removed)
            return {"a": feeds["x"] + len(removed), "b": feeds["x"]}

        return run

    ablation = Ablation(without, [{"x": np.ones((2, 3))}, {"x": np.ones((4, 3))}], "norm")
    assert ablation([]) == 0
    assert ablation(["p", "q"]) == ablation(["q", "p"]) == pytest.approx(4)
    assert len(runs) == 4  # the reference and one set, on two batches
    with pytest.raises(InputError, match="no sample"):
        Ablation(without, [])
