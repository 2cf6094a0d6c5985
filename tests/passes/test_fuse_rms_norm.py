"""Root-mean-square norms of every spelling become one operator; near misses stay."""

from __future__ import annotations

import numpy as np
import pytest

from lwqc.passes.fuse_rms_norm import FuseRmsNorm
from lwqc.runtime.session import Session, optimized_graph
from tests.build import Row, model, normal

WEIGHTS = {
    "two": np.float32(2),
    "one": np.float32(1),
    "last": np.asarray([-1]),
    "first": np.asarray([1]),
    "eps": np.float32(1e-5),
    "gain": normal(6, seed=1),
    "rows": normal(5, 1, seed=2),
}
SQUARES: dict[str, list[Row]] = {
    "pow": [("Pow", ["x", "two"], "square", {})],
    "mul": [("Mul", ["x", "x"], "square", {})],
}
MEAN: list[Row] = [
    ("ReduceMean", ["square", "last"], "mean", {"keepdims": 1}),
    ("Add", ["mean", "eps"], "shifted", {}),
    ("Sqrt", ["shifted"], "root", {}),
]
ROOTS: dict[str, list[Row]] = {
    "reciprocal": [("Reciprocal", ["root"], "inverse", {}), ("Mul", ["x", "inverse"], "n", {})],
    "one over": [("Div", ["one", "root"], "inverse", {}), ("Mul", ["inverse", "x"], "n", {})],
    "divided": [("Div", ["x", "root"], "n", {})],
}
GAIN: list[Row] = [("Mul", ["n", "gain"], "y", {})]


def built(rows: list[Row], opset: int = 23):
    used = {name for row in rows for name in row[1]}
    weights = {n: w for n, w in WEIGHTS.items() if n in used}
    return model(rows, weights, {"x": ["batch", 5, 6]}, ["y"], opset=opset)


@pytest.mark.parametrize("square", SQUARES)
@pytest.mark.parametrize("root", ROOTS)
def test_every_spelling(square, root):
    net = built([*SQUARES[square], *MEAN, *ROOTS[root], *GAIN])
    feeds = {"x": normal(2, 5, 6)}
    before = Session(net)(feeds)["y"]
    assert FuseRmsNorm()(net).modified
    assert [node.op_type for node in net.graph] == ["RMSNormalization"]
    np.testing.assert_allclose(Session(net)(feeds)["y"], before, rtol=1e-5, atol=1e-6)
    assert [node.op_type for node in optimized_graph(net).node] == ["RMSNormalization"]


MISSES: dict[str, list[Row]] = {
    "another axis": [
        *SQUARES["pow"],
        ("ReduceMean", ["square", "first"], "mean", {"keepdims": 1}),
        *MEAN[1:],
        *ROOTS["divided"],
        *GAIN,
    ],
    "a gain of rows": [
        *SQUARES["pow"], *MEAN, *ROOTS["divided"], ("Mul", ["n", "rows"], "y", {}),
    ],
    "of something else": [
        *SQUARES["pow"], *MEAN, ("Neg", ["x"], "z", {}), ("Div", ["z", "root"], "n", {}), *GAIN,
    ],
    "no epsilon": [
        *SQUARES["pow"], MEAN[0], ("Sqrt", ["mean"], "root", {}), *ROOTS["divided"], *GAIN,
    ],
}  # fmt: skip


@pytest.mark.parametrize("reason", MISSES)
def test_near_misses_stay(reason):
    net = built(MISSES[reason])
    assert not FuseRmsNorm()(net).modified


def test_an_older_opset_has_no_such_operator():
    assert not FuseRmsNorm()(built([*SQUARES["pow"], *MEAN, *ROOTS["divided"], *GAIN], 20)).modified
