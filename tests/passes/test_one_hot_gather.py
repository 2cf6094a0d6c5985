"""Products with one-hot vectors read rows of the weight."""

from __future__ import annotations

import numpy as np
import pytest

from lwqc.passes.one_hot_gather import OneHotGather
from lwqc.runtime.session import Session
from lwqc.testing import applied, assert_harmless, assert_untouched
from tests.build import model, normal

CLASSES = 7
INT64, INT32, UINT8, FLOAT = 7, 6, 2, 1
# Of every kind: classes, counted from the end, and none from either side.
PLACES = np.array([[0, 6, 3, -1, -7], [-8, 7, 100, -100, 2]])


def one_hot(
    *,
    kind=INT64,
    values=(0.0, 1.0),
    depth=CLASSES,
    axis=-1,
    shape=("n", "t"),
    cast=False,
    target=None,
    other=False,
    opset=20,
    weight=None,
):
    pair = np.array(values, np.int64 if cast else np.float32)
    rows = [("OneHot", ["x", "depth", "pair"], "hot", {"axis": axis})]
    stored = {
        "depth": np.array(depth, np.int32 if kind == INT32 else np.int64),
        "pair": pair,
        "w": normal(CLASSES, 5) if weight is None else weight,
    }
    last = "hot"
    if cast:
        rows.append(("Cast", [last], "number", {"to": FLOAT}))
        last = "number"
    if target is not None:
        stored["target"] = np.array(target)
        rows.append(("Reshape", [last, "target"], "flat", {}))
        last = "flat"
    rows.append(("MatMul", [last, "w"], "y", {}))
    if other:
        rows.append(("Neg", ["w"], "z", {}))
    outputs = ["y", "z"] if other else ["y"]
    return model(rows, stored, {"x": shape}, outputs, types={"x": kind}, opset=opset)


def equal(*, kind=INT64, table=None, shape=("n", "t", 1), expand=False, swap=False):
    dtype = {INT64: np.int64, INT32: np.int32, FLOAT: np.float32, UINT8: np.uint8}[kind]
    stored = {
        "table": (np.arange(CLASSES) if table is None else table).astype(dtype),
        "w": normal(CLASSES, 5),
    }
    rows, last = [], "x"
    if expand:
        stored["ones"] = np.array([1, 1, 1])
        rows.append(("Expand", ["x", "ones"], "wide", {}))
        last = "wide"
    pair = ["table", last] if swap else [last, "table"]
    rows += [
        ("Equal", pair, "same", {}),
        ("Cast", ["same"], "hot", {"to": FLOAT}),
        ("MatMul", ["hot", "w"], "y", {}),
    ]
    return model(rows, stored, {"x": shape}, ["y"], types={"x": kind})


def linear(*, bias=True, **attributes):
    stored = {
        "depth": np.array(CLASSES),
        "pair": np.array([0, 1], np.float32),
        "w": normal(5, CLASSES) if attributes.get("transB") else normal(CLASSES, 5),
        "b": normal(5),
    }
    rows = [
        ("OneHot", ["x", "depth", "pair"], "hot", {}),
        ("Gemm", ["hot", "w", *(["b"] if bias else [])], "y", attributes),
    ]
    return model(rows, stored, {"x": ["n"]}, ["y"], types={"x": INT64})


@pytest.mark.parametrize(
    ("built", "feed"),
    [
        (linear(), PLACES[1]),
        (linear(transB=1, alpha=1.0), PLACES[1]),
        (linear(bias=False), PLACES[1]),
        (one_hot(), PLACES),
        (one_hot(axis=2), PLACES),
        (one_hot(kind=INT32), PLACES.astype(np.int32)),
        (one_hot(cast=True, values=(0, 1)), PLACES),
        (one_hot(target=[-1, CLASSES]), PLACES),
        (one_hot(cast=True, values=(0, 1), target=[5, -1, CLASSES]), PLACES),
        (one_hot(shape=("n",)), PLACES[0]),
        (one_hot(weight=normal(CLASSES, 1)), PLACES),
        (equal(), PLACES[..., None]),
        (equal(kind=INT32), PLACES[..., None].astype(np.int32)),
        (equal(kind=UINT8), (PLACES[..., None] % 256).astype(np.uint8)),
        (equal(table=np.arange(CLASSES).reshape(1, 1, CLASSES)), PLACES[..., None]),
        (equal(expand=True), PLACES[..., None]),
        (equal(swap=True), PLACES[..., None]),
    ],
)
def test_rows_are_read(built, feed):
    done = applied(OneHotGather(), built)
    kinds = {node.op_type for node in done.model.graph}
    assert "Gather" in kinds
    assert not kinds & {"MatMul", "Gemm"}
    ours, theirs = (Session(m)({"x": feed})["y"] for m in (done.model, built))
    assert np.array_equal(ours, theirs)
    assert_harmless(OneHotGather(), built, "one-hot", feeds={"x": feed}, tolerance=1e-7)


@pytest.mark.parametrize(
    "built",
    [
        one_hot(values=(0.0, 2.0)),
        linear(alpha=0.5),
        linear(beta=0.0),
        one_hot(values=(1.0, 0.0)),
        one_hot(axis=1, shape=("n", CLASSES)),
        one_hot(target=[-1, CLASSES, 0], weight=normal(2, 5), depth=2, shape=(CLASSES, 2)),
        one_hot(kind=FLOAT),
        equal(table=np.arange(CLASSES)[::-1]),
        equal(table=np.arange(1, CLASSES + 1)),
        equal(shape=("n", "t", CLASSES)),
        equal(kind=FLOAT),
    ],
)
def test_other_products_stay(built):
    assert_untouched(OneHotGather(), built)


@pytest.mark.parametrize(
    ("built", "given", "reason"),
    [
        (one_hot(other=True), OneHotGather(), "its weight has another use"),
        (one_hot(), OneHotGather(whole=("w",)), "its weight has another use"),
        (one_hot(opset=12), OneHotGather(), "opset 12 is below 13"),
        (
            one_hot(weight=np.full((CLASSES, 5), np.inf, np.float32)),
            OneHotGather(),
            "its weight is not finite",
        ),
    ],
)
def test_what_stays_says_why(built, given, reason):
    assert_untouched(given, built, f"product with one-hot vectors: {reason}")
