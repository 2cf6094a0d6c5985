"""Rotary positions of both exporters become one operator; near misses stay."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest

from lwqc.passes.fuse_rotary import FuseRotary
from lwqc.runtime.session import Session, optimized_graph
from tests.build import Row, model, normal

HEADS, SIZE = 3, 8
WEIGHTS = {
    "split": np.asarray([0, 0, HEADS, SIZE]),
    "rates": normal(SIZE // 2, seed=3)[None, :],
    "other": normal(SIZE // 2, seed=4)[None, :],
    "axis": np.asarray([1]),
    "zero": np.asarray([0]),
    "half": np.asarray([SIZE // 2]),
    "end": np.asarray([np.iinfo(np.int64).max]),
    "last": np.asarray([-1]),
    "by": np.float32(1.5),
}
POSITIONS: list[Row] = [("Mul", ["positions", "rates"], "angles", {})]
BOTH: list[Row] = [("Concat", ["angles", "angles"], "twice", {"axis": -1})]
TABLES: list[Row] = [("Cos", ["twice"], "cos", {}), ("Sin", ["twice"], "sin", {})]
APART: list[Row] = [
    ("Cos", ["twice"], "cos3", {}),
    ("Sin", ["twice"], "sin3", {}),
    ("Mul", ["cos3", "by"], "cos_by", {}),
    ("Unsqueeze", ["cos_by", "axis"], "cos", {}),
    ("Unsqueeze", ["sin3", "axis"], "sin", {}),
]
HEADS_FIRST: list[Row] = [
    ("Reshape", ["q", "split"], "q4", {}),
    ("Transpose", ["q4"], "x", {"perm": [0, 2, 1, 3]}),
]
HALVES: list[Row] = [
    ("Slice", ["x", "zero", "half", "last"], "x1", {}),
    ("Slice", ["x", "half", "end", "last"], "x2", {}),
]
TURN: list[Row] = [
    ("Neg", ["x2"], "minus", {}),
    ("Concat", ["minus", "x1"], "turned", {"axis": -1}),
    ("Mul", ["x", "cos"], "a", {}),
    ("Mul", ["turned", "sin"], "b", {}),
    ("Add", ["a", "b"], "y", {}),
]
FLAT = {"q": ["batch", "tokens", HEADS * SIZE]}


def built(rows: list[Row], inputs, opset: int = 23):
    used = {name for row in rows for name in row[1]}
    weights = {n: w for n, w in WEIGHTS.items() if n in used}
    types = dict.fromkeys(inputs, onnx.TensorProto.FLOAT)
    return model(rows, weights, inputs, ["y"], opset=opset, types=types)


def fused(net, feeds) -> Counter[str]:
    before = Session(net)(feeds)["y"]
    assert FuseRotary()(net).modified
    np.testing.assert_allclose(Session(net)(feeds)["y"], before, rtol=1e-5, atol=1e-5)
    return Counter(node.op_type for node in net.graph)


def test_positions_without_a_batch_before_heads_are_split():
    rows = [*POSITIONS, *BOTH, *TABLES, *HEADS_FIRST, *HALVES, *TURN]
    net = built(rows, {**FLAT, "positions": ["tokens", 1]})
    feeds = {"q": normal(2, 5, HEADS * SIZE), "positions": normal(5, 1, seed=1)}
    ops = fused(net, feeds)
    assert (ops["RotaryEmbedding"], ops["Neg"], ops["Reshape"], ops["Transpose"]) == (1, 0, 1, 1)
    rotary = next(n for n in net.graph if n.op_type == "RotaryEmbedding")
    assert rotary.inputs[0] is not None
    assert rotary.inputs[0].name == "q"
    assert "RotaryEmbedding" in {node.op_type for node in optimized_graph(net).node}


def test_positions_of_each_sample_and_heads_that_come_first():
    rows = [*POSITIONS, *BOTH, *APART, *HALVES, *TURN]
    net = built(rows, {"x": ["batch", HEADS, "tokens", SIZE], "positions": ["batch", "tokens", 1]})
    feeds = {"x": normal(2, HEADS, 5, SIZE), "positions": normal(2, 5, 1, seed=1)}
    assert fused(net, feeds)["Expand"] == 0


def test_layers_share_their_tables():
    made = {row[2] for row in (*HEADS_FIRST, *HALVES, *TURN)} | {"q"}
    keys = [
        (op, [f"{n}_k" if n in made else n for n in used], f"{out}_k", attributes)
        for op, used, out, attributes in [*HEADS_FIRST, *HALVES, *TURN]
    ]
    queries = [*POSITIONS, *BOTH, *TABLES, *HEADS_FIRST, *HALVES, *TURN[:-1]]
    rows = [*queries, (*TURN[-1][:2], "y_q", {}), *keys, ("Add", ["y_q", "y_k"], "y", {})]
    net = built(rows, {**FLAT, "q_k": FLAT["q"], "positions": ["tokens", 1]})
    FuseRotary()(net)
    ops = Counter(node.op_type for node in net.graph)
    assert (ops["RotaryEmbedding"], ops["Slice"], ops["Expand"]) == (2, 2, 2)


MISSES: dict[str, list[Row]] = {
    "unequal halves": [
        *POSITIONS, ("Mul", ["positions", "other"], "second", {}),
        ("Concat", ["angles", "second"], "twice", {"axis": -1}), *TABLES, *HALVES, *TURN,
    ],
    "the second half first": [
        *POSITIONS, *BOTH, *TABLES,
        ("Slice", ["x", "zero", "half", "last"], "x2", {}),
        ("Slice", ["x", "half", "end", "last"], "x1", {}), *TURN,
    ],
    "of something else": [
        *POSITIONS, *BOTH, *TABLES, *HALVES, *TURN[:2], ("Abs", ["x"], "z", {}),
        ("Mul", ["z", "cos"], "a", {}), *TURN[3:],
    ],
}  # fmt: skip


@pytest.mark.parametrize("reason", MISSES)
def test_near_misses_stay(reason):
    inputs = {"x": ["batch", HEADS, "tokens", SIZE], "positions": ["tokens", 1]}
    assert not FuseRotary()(built(MISSES[reason], inputs)).modified


def test_an_older_opset_has_no_such_operator():
    rows = [*POSITIONS, *BOTH, *TABLES, *HALVES, *TURN]
    inputs = {"x": ["batch", HEADS, "tokens", SIZE], "positions": ["tokens", 1]}
    assert not FuseRotary()(built(rows, inputs, 20)).modified
