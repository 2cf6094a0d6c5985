"""Grouped heads and caches go into the attention operator, where nothing else needs them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from onnx_ir.passes.common import ShapeInferencePass

from lwqc.model import io
from lwqc.passes.fuse_attention import FuseAttention
from lwqc.runtime.session import Session
from lwqc.runtime.stats.collect import collect
from lwqc.runtime.stats.shapes import Shapes
from tests.build import Row, model, normal

HEADS, GROUPS, SIZE = 6, 2, 4
WEIGHTS = {
    "q_split": np.asarray([0, 0, HEADS, SIZE]),
    "k_split": np.asarray([0, 0, GROUPS, SIZE]),
    "join": np.asarray([0, 0, HEADS * SIZE]),
    "scale": np.float32(SIZE**-0.5),
    "two": np.asarray([2]),
    "repeats": np.asarray([1, 1, HEADS // GROUPS, 1, 1]),
    "whole": np.asarray([0, HEADS, -1, SIZE]),
}
FRONT: list[Row] = [
    ("Reshape", ["q", "q_split"], "q4", {}),
    ("Transpose", ["q4"], "qh", {"perm": [0, 2, 1, 3]}),
    *(
        row
        for x in "kv"
        for row in (
            ("Reshape", [x, "k_split"], f"{x}4", {}),
            ("Transpose", [f"{x}4"], f"{x}h", {"perm": [0, 2, 1, 3]}),
        )
    ),
]
CACHE: list[Row] = [("Concat", [f"past_{x}", f"{x}h"], f"present_{x}", {"axis": 2}) for x in "kv"]


def repeated(suffix: str) -> list[Row]:
    return [
        row
        for x in "kv"
        for row in (
            ("Unsqueeze", [f"{suffix}{x}" if suffix else f"{x}h", "two"], f"{x}5", {}),
            ("Expand", [f"{x}5", "repeats"], f"{x}e", {}),
            ("Reshape", [f"{x}e", "whole"], f"{x}r", {}),
        )
    ]


def attention(mask: bool) -> list[Row]:
    return [
        ("Transpose", ["kr"], "kt", {"perm": [0, 1, 3, 2]}),
        ("MatMul", ["qh", "kt"], "raw", {}),
        ("Mul", ["raw", "scale"], "s", {}),
        *([("Add", ["s", "mask"], "m", {})] if mask else []),
        ("Softmax", ["m" if mask else "s"], "p", {"axis": -1}),
        ("MatMul", ["p", "vr"], "o", {}),
        ("Transpose", ["o"], "ot", {"perm": [0, 2, 1, 3]}),
        ("Reshape", ["ot", "join"], "y", {}),
    ]


def net(rows, mask=("batch", 1, "tokens", "past + tokens"), outputs=("present_k", "present_v")):
    inputs: dict = {
        "q": ["batch", "tokens", HEADS * SIZE],
        "k": ["batch", "tokens", GROUPS * SIZE],
        "v": ["batch", "tokens", GROUPS * SIZE],
    }
    if any(row[0] == "Concat" for row in rows):
        inputs |= {f"past_{x}": ["batch", GROUPS, "past", SIZE] for x in "kv"}
    if any("mask" in row[1] for row in rows):
        inputs["mask"] = list(mask)
    used = {name for row in rows for name in row[1]}
    weights = {n: w for n, w in WEIGHTS.items() if n in used}
    return model(rows, weights, inputs, ["y", *outputs], opset=23)


def feeds(past: int = 5, tokens: int = 3, mask=None):
    given = {
        "q": normal(2, tokens, HEADS * SIZE, seed=1),
        **{x: normal(2, tokens, GROUPS * SIZE, seed=i) for i, x in enumerate("kv")},
        **{f"past_{x}": normal(2, GROUPS, past, SIZE, seed=i + 5) for i, x in enumerate("kv")},
    }
    if mask is not None:
        given["mask"] = normal(*mask, seed=9)
    return given


def fused(built, given) -> Counter[str]:
    expected = Session(built)(given)
    assert FuseAttention()(built).modified
    ShapeInferencePass()(built)
    onnx.checker.check_model(io.to_bytes(built), full_check=True)
    found = Session(built)(given)
    assert list(found) == list(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, atol=1e-5)
    return Counter(node.op_type for node in built.graph)


@pytest.mark.parametrize("past", [0, 5])
def test_a_cache_and_grouped_heads_go_inside(past):
    built = net([*FRONT, *CACHE, *repeated("present_"), *attention(True)])
    assert fused(built, feeds(past, mask=(2, 1, 3, 3 + past))) == {"Attention": 1, "Max": 1}
    node = next(n for n in built.graph if n.op_type == "Attention")  # Max bounds the mask
    assert node.attributes["kv_num_heads"].as_int() == GROUPS


def test_grouped_heads_without_a_cache():
    built = net([*FRONT, *repeated(""), *attention(False)], outputs=())
    assert fused(built, feeds(0)) == {"Attention": 1}


def test_a_mask_that_needs_the_number_of_keys_keeps_the_cache_outside():
    built = net([*FRONT, *CACHE, *repeated("present_"), *attention(True)], mask=(1, 1, 1, 1))
    assert fused(built, feeds(mask=(1, 1, 1, 1)))["Concat"] == 3  # two caches and a shape


def test_a_cache_that_the_query_depends_on_stays_outside():
    rows = [
        *FRONT, *CACHE, *repeated("present_"), ("ReduceMax", ["present_k"], "top", {"keepdims": 0}),
        ("Mul", ["qh", "top"], "qt", {}), *attention(False),
    ]  # fmt: skip
    rows = [(op, ["qt" if op == "MatMul" and n == "qh" else n for n in used], out, attributes)
            for op, used, out, attributes in rows]  # fmt: skip
    ops = fused(net(rows), feeds())
    assert (ops["Attention"], ops["Concat"]) == (1, 2)


def test_other_readers_of_repeated_heads_keep_them():
    rows = [*FRONT, *CACHE, *repeated("present_"), *attention(False)]
    built = net([*rows, ("Neg", ["ke"], "other", {})], outputs=("present_k", "present_v", "other"))
    ops = fused(built, feeds())
    assert (ops["Attention"], ops["Expand"], ops["Concat"]) == (1, 2, 2)


def test_statistics_of_a_model_with_a_cache_run():
    built = net([*FRONT, *CACHE, *repeated("present_"), *attention(False)])
    FuseAttention()(built)
    wanted = Shapes("y")
    found = collect(built, [wanted], [feeds()], lambda m: Session(m))
    assert found[wanted].last == (2, 3, HEADS * SIZE)
