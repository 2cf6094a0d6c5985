"""Layer norms of every spelling become one operator; near misses stay."""

from __future__ import annotations

import numpy as np
import pytest

from lwqc.passes.fuse_layer_norm import FuseLayerNorm
from lwqc.passes.fuse_rms_norm import FuseRmsNorm
from lwqc.runtime.session import Session
from tests.build import Row, model, normal

WEIGHTS = {
    "two": np.float32(2),
    "last": np.asarray([-1]),
    "first": np.asarray([1]),
    "eps": np.float32(1e-5),
    "gain": normal(6, seed=1),
    "bias": normal(6, seed=2),
    "rows": normal(5, 1, seed=2),
    "zero": np.float32(0),
}
MEAN: Row = ("ReduceMean", ["x", "last"], "mean", {})
CENTRED: Row = ("Sub", ["x", "mean"], "centred", {})
ROOT: list[Row] = [("Add", ["var", "eps"], "shifted", {}), ("Sqrt", ["shifted"], "root", {})]
INVERSE: list[Row] = [
    ("Reciprocal", ["root"], "inverse", {}),
    ("Mul", ["inverse", "gain"], "factor", {}),
]
TORCH: list[Row] = [
    MEAN,
    CENTRED,
    ("Pow", ["centred", "two"], "square", {}),
    ("ReduceMean", ["square", "last"], "var", {}),
    *ROOT,
    ("Div", ["centred", "root"], "n", {}),
    ("Mul", ["n", "gain"], "scaled", {}),
    ("Add", ["scaled", "bias"], "y", {}),
]
SPELLINGS: dict[str, list[Row]] = {
    "torch": TORCH,
    "without a bias": [*TORCH[:-2], ("Mul", ["n", "gain"], "y", {})],
    "plain": [*TORCH[:-3], ("Div", ["centred", "root"], "y", {})],
    "flax": [
        MEAN,
        ("Mul", ["x", "x"], "square", {}),
        ("ReduceMean", ["square", "last"], "power", {}),
        ("Mul", ["mean", "mean"], "power_of_mean", {}),
        ("Sub", ["power", "power_of_mean"], "difference", {}),
        ("Max", ["difference", "zero"], "var", {}),
        *ROOT,
        *INVERSE,
        CENTRED,
        ("Mul", ["centred", "factor"], "scaled", {}),
        ("Add", ["scaled", "bias"], "y", {}),
    ],
    "tensorflow": [
        MEAN,
        CENTRED,
        ("Mul", ["centred", "centred"], "square", {}),
        ("ReduceMean", ["square", "last"], "var", {}),
        *ROOT,
        *INVERSE,
        ("Mul", ["x", "factor"], "a", {}),
        ("Mul", ["mean", "factor"], "b", {}),
        ("Sub", ["bias", "b"], "c", {}),
        ("Add", ["a", "c"], "y", {}),
    ],
}


def built(rows: list[Row], outputs: tuple[str, ...] = ("y",), opset: int = 20):
    used = {name for row in rows for name in row[1]}
    weights = {n: w for n, w in WEIGHTS.items() if n in used}
    return model(rows, weights, {"x": ["batch", 5, 6]}, list(outputs), opset=opset)


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling(name):
    net = built(SPELLINGS[name])
    feeds = {"x": normal(2, 5, 6) * 3 + 1}
    before = Session(net)(feeds)["y"]
    assert FuseLayerNorm()(net).modified
    (node,) = net.graph
    assert node.op_type == "LayerNormalization"
    assert node.attributes["epsilon"].as_float() == pytest.approx(1e-5, rel=1e-4)
    np.testing.assert_allclose(Session(net)(feeds)["y"], before, rtol=1e-5, atol=2e-6)


def with_(rows: list[Row], old: str, new: str) -> list[Row]:
    return [(op, [new if n == old else n for n in used], out, a) for op, used, out, a in rows]


# Without the gain, which is not one for each channel or is behind what something else reads.
PARTS = {
    "gain of the rows": built(with_(TORCH, "gain", "rows")),
    "read in between": built([*TORCH, ("Abs", ["n"], "z", {})], ("y", "z")),
}


@pytest.mark.parametrize("name", PARTS)
def test_the_norm_alone_where_its_gain_does_not_fit(name):
    net = PARTS[name]
    feeds = {"x": normal(2, 5, 6)}
    before = Session(net)(feeds)["y"]
    FuseLayerNorm()(net)
    operators = [node.op_type for node in net.graph]
    assert operators[:3] == ["LayerNormalization", "Mul", "Add"]
    np.testing.assert_allclose(Session(net)(feeds)["y"], before, rtol=1e-5, atol=2e-6)


MISSES = {
    "no mean taken off": built(with_(TORCH[2:], "centred", "x")),
    "another axis": built(with_(TORCH, "last", "first")),
    "no epsilon": built(with_(TORCH, "eps", "zero")),
    "variance read": built([*TORCH, ("Abs", ["var"], "z", {})], ("y", "z")),
    "of an old opset": built(
        [
            ("ReduceMean", ["x"], "mean", {"axes": [-1]}) if row is MEAN else row
            for row in TORCH[:-6]
        ],
        ("square",),
        opset=16,
    ),
}


@pytest.mark.parametrize("name", MISSES)
def test_near_misses_stay(name):
    net = MISSES[name]
    before = [node.op_type for node in net.graph]
    assert not FuseLayerNorm()(net).modified
    assert [node.op_type for node in net.graph] == before


def test_a_layer_norm_is_not_taken_for_a_root_mean_square_norm():
    net = built(TORCH, opset=23)
    assert not FuseRmsNorm()(net).modified


def test_a_limit_behind_the_norm_stays():
    """Only a row with one number far from all others reaches it."""
    rows = [
        ("ReduceMean", ["x", "axes"], "m", {}),
        ("Sub", ["x", "m"], "d", {}),
        ("Mul", ["d", "d"], "s", {}),
        ("ReduceMean", ["s", "axes"], "v", {}),
        ("Add", ["v", "eps"], "e", {}),
        ("Sqrt", ["e"], "r", {}),
        ("Div", ["d", "r"], "n", {}),
        ("Neg", ["n"], "p", {}),
        ("Max", ["p", "low"], "q", {}),
        ("Neg", ["q"], "y", {}),
    ]
    numbers = {"axes": np.array([-1]), "eps": np.float32(1e-5), "low": np.float32(-5)}
    net = model(rows, numbers, {"x": ["n", 64]}, ["y"])
    x = np.eye(64, dtype=np.float32)
    before = Session(net)({"x": x})["y"]
    FuseLayerNorm()(net)
    assert before.max() == 5
    assert np.abs(Session(net)({"x": x})["y"] - before).max() < 1e-4
