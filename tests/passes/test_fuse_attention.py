"""Attention from every exporter becomes one operator with the same numbers; near misses stay."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import IdentityEliminationPass

from lwqc.model import io
from lwqc.passes.flat_transpose import FlatTranspose
from lwqc.passes.fuse_attention import FuseAttention
from lwqc.passes.raise_opset import RaiseOpset
from lwqc.runtime.session import Session, SessionSettings, optimized_graph
from tests.build import Row, model, normal

TOLERANCE = 1e-5  # of the largest output
HEADS, SIZE = 3, 4
WIDTH = HEADS * SIZE
LOWEST = float(np.finfo(np.float32).min)
WEIGHTS = {
    "split": np.asarray([0, 0, HEADS, SIZE]),
    "join": np.asarray([0, 0, WIDTH]),
    "half": np.float32(SIZE**-0.25),
    "scale": np.float32(SIZE**-0.5),
    "root": np.float32(SIZE**0.5),
    "zero": np.float32(0),
    "inf": np.float32(-np.inf),
    "lowest": np.float32(LOWEST),
    "flat": np.asarray([-1, 9, SIZE]),
    "unflat": np.asarray([2, HEADS, SIZE, 9]),
}
QUERY: list[Row] = [
    ("Reshape", ["q", "split"], "q4", {}),
    ("Transpose", ["q4"], "qh", {"perm": [0, 2, 1, 3]}),
]
VALUE: list[Row] = [
    ("Reshape", ["v", "split"], "v4", {}),
    ("Transpose", ["v4"], "vh", {"perm": [0, 2, 1, 3]}),
]
KEYS: dict[str, list[Row]] = {
    "direct": [
        ("Reshape", ["k", "split"], "k4", {}),
        ("Transpose", ["k4"], "kt", {"perm": [0, 2, 3, 1]}),
    ],
    "twice": [
        ("Reshape", ["k", "split"], "k4", {}),
        ("Transpose", ["k4"], "kh", {"perm": [0, 2, 1, 3]}),
        ("Transpose", ["kh"], "kt", {"perm": [0, 1, 3, 2]}),
    ],
    "flat": [
        ("Reshape", ["k", "split"], "k4", {}),
        ("Transpose", ["k4"], "kh", {"perm": [0, 2, 1, 3]}),
        ("Reshape", ["kh", "flat"], "kf", {}),
        ("Transpose", ["kf"], "kg", {"perm": [0, 2, 1]}),
        ("Reshape", ["kg", "unflat"], "kt", {}),
    ],
}
SCALES: dict[str, list[Row]] = {
    "scores": [("MatMul", ["qh", "kt"], "raw", {}), ("Mul", ["raw", "scale"], "s", {})],
    "divided": [("MatMul", ["qh", "kt"], "raw", {}), ("Div", ["raw", "root"], "s", {})],
    "query": [("Mul", ["scale", "qh"], "qs", {}), ("MatMul", ["qs", "kt"], "s", {})],
    "both": [
        ("Mul", ["qh", "half"], "qs", {}),
        ("Mul", ["kt", "half"], "ks", {}),
        ("MatMul", ["qs", "ks"], "s", {}),
    ],
}
MASKS: dict[str, list[Row]] = {
    "none": [("Identity", ["s"], "m", {})],
    "inf": [("Where", ["keep", "zero", "inf"], "a", {}), ("Add", ["s", "a"], "m", {})],
    "lowest": [("Where", ["keep", "zero", "lowest"], "a", {}), ("Add", ["a", "s"], "m", {})],
    "chosen": [("Where", ["keep", "s", "lowest"], "m", {})],
    "dropped": [("Not", ["keep"], "d", {}), ("Where", ["d", "inf", "s"], "m", {})],
    "computed": [
        ("Cast", ["keep"], "f", {"to": 1}),
        ("Sub", ["f", "one"], "g", {}),
        ("Mul", ["g", "huge"], "a", {}),
        ("Add", ["s", "a"], "m", {}),
    ],
    "two": [
        ("Where", ["keep", "zero", "lowest"], "a", {}),
        ("Add", ["s", "bias"], "t", {}),
        ("Add", ["t", "a"], "m", {}),
    ],
}
PLAIN: list[Row] = [("Softmax", ["m"], "p", {"axis": -1}), ("MatMul", ["p", "vh"], "o", {})]
GUARDED: list[Row] = [
    ("Softmax", ["m"], "r", {"axis": -1}),
    ("IsNaN", ["r"], "nan", {}),
    ("Where", ["nan", "zero", "r"], "p", {}),
    ("MatMul", ["p", "vh"], "o", {}),
]
JOIN: list[Row] = [
    ("Transpose", ["o"], "ot", {"perm": [0, 2, 1, 3]}),
    ("Reshape", ["ot", "join"], "y", {}),
]


def net(
    keys="direct", scale="scores", mask="none", end=None, mask_shape=(2, 1, 1, 9), **options
) -> ir.Model:
    """Attention of 7 queries to 9 keys in a batch of 2."""
    rows = [*QUERY, *VALUE, *KEYS[keys], *SCALES[scale], *MASKS[mask], *(end or PLAIN + JOIN)]
    inputs = {"q": [2, "s", WIDTH], "k": [2, 9, WIDTH], "v": [2, 9, WIDTH]}
    inputs |= {} if mask == "none" else {"keep": ["s" if n == 7 else n for n in mask_shape]}
    numbers = WEIGHTS | {
        "one": np.float32(1), "huge": np.float32(-LOWEST), "bias": normal(1, HEADS, 1, 9, seed=5),
    }  # fmt: skip
    read = {name for _, used, _, _ in rows for name in used}
    return model(
        rows,
        {n: v for n, v in numbers.items() if n in read},
        inputs,
        ["y"],
        types={"keep": onnx.TensorProto.BOOL},
        **{"opset": 23} | options,
    )


def feeds(mask_shape=(2, 1, 1, 9), *, hidden_row=False, scale=1.0):
    keep = np.random.default_rng(3).random(mask_shape) < 0.6
    keep[..., 0] = True
    if hidden_row:
        keep[-1] = False
    return {
        "q": normal(2, 7, WIDTH, seed=1, scale=scale), "k": normal(2, 9, WIDTH, seed=2),
        "v": normal(2, 9, WIDTH, seed=4), "keep": keep,
    }  # fmt: skip


def run(built: ir.Model, given):
    return Session(built, SessionSettings(optimize=False))(given)["y"]


def fused(built: ir.Model, given) -> ir.Model:
    copy, rewrite = built.clone(), FuseAttention()
    IdentityEliminationPass()(copy)
    FlatTranspose()(copy)
    rewrite(copy)
    assert not rewrite.left
    assert ops(copy)["Attention"] == 1
    assert not ops(copy)["Softmax"]
    onnx.checker.check_model(io.to_bytes(copy), full_check=True)
    expected, found = run(built, given), Session(copy)(given)["y"]
    assert np.isfinite(expected).all()
    scale = float(np.abs(expected).max())
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE * scale)
    return copy


def ops(built: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in built.graph)


@pytest.mark.parametrize("keys", KEYS)
@pytest.mark.parametrize("scale", SCALES)
def test_every_form_of_keys_and_scale(keys, scale):
    done = fused(net(keys, scale), feeds())
    assert set(ops(done)) == {"Attention"}


@pytest.mark.parametrize("mask", [name for name in MASKS if name != "none"])
@pytest.mark.parametrize("shape", [(2, 1, 1, 9), (1, 1, 7, 9), (2, HEADS, 7, 9), (7, 9), (9,)])
def test_every_mask(mask, shape):
    fused(net(mask=mask, mask_shape=shape), feeds(shape))


@pytest.mark.parametrize("mask", ["lowest", "chosen", "computed", "two"])
def test_rows_that_a_finite_mask_hides_give_the_mean_of_all_values(mask):
    fused(net(mask=mask), feeds(hidden_row=True, scale=30.0))


@pytest.mark.parametrize("mask", ["inf", "dropped"])
def test_rows_that_are_hidden_and_repaired_give_zero(mask):
    given = feeds(hidden_row=True)
    done = fused(net(mask=mask, end=GUARDED + JOIN), given)
    assert not ops(done)["IsNaN"]
    assert not run(done, given)[1].any()


def test_a_repair_behind_a_computed_mask_keeps_both_meanings():
    given = feeds(hidden_row=True)
    fused(net(mask="computed", end=GUARDED + JOIN), given)


def test_heads_that_stay_in_front():
    end: list[Row] = [*PLAIN, ("Relu", ["o"], "y", {})]
    done = fused(net(end=end), feeds())
    assert ops(done) == {"Reshape": 3, "Transpose": 3, "Attention": 1, "Relu": 1}


def test_heads_that_are_not_joined():
    end: list[Row] = [*PLAIN, ("Transpose", ["o"], "y", {"perm": [0, 2, 1, 3]})]
    done = fused(net(end=end), feeds())
    assert ops(done) == {"Attention": 1, "Reshape": 1}


def test_the_runtime_has_a_kernel_for_it():
    done = fused(net(mask="inf", end=GUARDED + JOIN), feeds())
    chosen = Counter(node.op_type for node in optimized_graph(done).node)
    assert chosen["Attention"] == 1
    assert not {"Softmax", "MatMul", "IsNaN", "Transpose"} & set(chosen)


def test_layers_share_their_mask():
    rows = [*QUERY, *VALUE, *KEYS["direct"], *SCALES["scores"], *MASKS["inf"], *PLAIN, *JOIN[:1]]
    second = [
        (op, [f"{v}_2" if v not in WEIGHTS and v not in "qk" and v != "keep" else v for v in used],
         f"{out}_2", kw)
        for op, used, out, kw in rows
    ]  # fmt: skip
    second = [
        (op, ["y" if v == "v_2" else v for v in used], out, kw) for op, used, out, kw in second
    ]
    second = [(op, ["a" if v == "a_2" else v for v in used], out, kw)
              for op, used, out, kw in second if out != "a_2"]  # fmt: skip
    last: list[Row] = [*JOIN[1:], *second, ("Reshape", ["ot_2", "join"], "z", {})]
    built = model(
        [*rows, *last],
        {n: WEIGHTS[n] for n in ("split", "join", "scale", "zero", "inf")},
        {"q": [2, 9, WIDTH], "k": [2, 9, WIDTH], "v": [2, 9, WIDTH], "keep": [2, 1, 1, 9]},
        ["y", "z"],
        types={"keep": onnx.TensorProto.BOOL},
        opset=23,
    )
    FuseAttention()(built)
    assert ops(built) == {"Attention": 2, "Where": 1, "Shape": 2, "Concat": 1, "Expand": 1}


REFUSED = {
    "its probabilities are read by several nodes": (
        [*PLAIN, *JOIN[:1], ("Reshape", ["ot", "join"], "yy", {}), ("ReduceSum", ["p"], "sum", {}),
         ("Add", ["yy", "sum"], "y", {})], {},
    ),
    "its scores s are read by several nodes": (
        [*PLAIN, *JOIN[:1], ("Reshape", ["ot", "join"], "yy", {}), ("ReduceSum", ["m"], "sum", {}),
         ("Add", ["yy", "sum"], "y", {})], {},
    ),
    "its probabilities are read by Relu": (
        [PLAIN[0], ("Relu", ["p"], "pp", {}), ("MatMul", ["pp", "vh"], "o", {}), *JOIN], {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("reason", REFUSED)
def test_other_readers(reason):
    end, options = REFUSED[reason]
    refused(net(end=end, **options), reason)


def test_a_mask_of_another_size_than_the_queries():
    refused(net(mask="inf", mask_shape=(2, 1, 8, 9)), "its mask a is not broadcast to its scores")


def refused(built: ir.Model, reason: str) -> None:
    rewrite = FuseAttention()
    IdentityEliminationPass()(built)
    assert not rewrite(built).modified
    assert list(rewrite.left.values()) == [reason]


def test_a_mask_inside_the_scale(monkeypatch):
    scaled: list[Row] = [
        ("MatMul", ["qh", "kt"], "s", {}),
        ("Add", ["s", "bias"], "t", {}),
        ("Mul", ["t", "scale"], "m", {}),
    ]
    monkeypatch.setitem(SCALES, "none", [])
    monkeypatch.setitem(MASKS, "scaled", scaled)
    refused(net(scale="none", mask="scaled"), "its scores are scaled behind their mask")


def test_scores_that_are_clipped(monkeypatch):
    monkeypatch.setitem(MASKS, "clipped", [("Tanh", ["s"], "m", {})])
    refused(net(mask="clipped"), "its scores pass through Tanh")


def test_operators_of_an_older_opset():
    refused(net(opset=20), "Attention needs opset 23")


def test_a_softmax_that_is_no_attention():
    built = model([("Softmax", ["x"], "y", {})], {}, {"x": [2, 5]}, ["y"], opset=23)
    rewrite = FuseAttention()
    assert not rewrite(built).modified
    assert not rewrite.left


@pytest.mark.parametrize("opset", [17, 20])
def test_opset_is_raised(opset):
    axes = {"axes": [1]} if opset < 18 else {}
    more = {} if opset < 18 else {"axes": np.asarray([1])}
    rows: list[Row] = [("ReduceMean", ["x", *more], "y", axes)]
    built = model(rows, more, {"x": [2, 3, 4]}, ["y"], opset=opset)
    given = {"x": normal(2, 3, 4)}
    expected, lift = run(built, given), RaiseOpset(23)
    assert lift(built).modified
    assert not lift.refused
    assert built.opset_imports[""] == 23
    onnx.checker.check_model(io.to_bytes(built), full_check=True)
    np.testing.assert_array_equal(run(built, given), expected)
    assert not RaiseOpset(23)(built).modified


def test_opset_is_not_raised_for_operators_that_are_gone():
    built = model([("Upsample", ["x", "scales"], "y", {})], {"scales": np.float32([1, 1, 2, 2])},
                  {"x": [1, 2, 3, 3]}, ["y"], opset=9)  # fmt: skip
    lift = RaiseOpset(23)
    before = [n.op_type for n in built.graph]
    if not lift(built).modified:
        assert lift.refused
        assert [n.op_type for n in built.graph] == before


@pytest.mark.parametrize("mask", ["inf", "lowest", "chosen", "dropped"])
def test_hidden_scores_may_be_finite(mask):
    built, given = net(mask=mask), feeds()
    expected, rewrite = run(built, given), FuseAttention(finite_masks=True)
    rewrite(built)
    assert len(rewrite.softened) == 1
    stored = [v.const_value for v in built.graph.initializers.values() if v.const_value is not None]
    assert min(float(t.numpy().min()) for t in stored if t.dtype == ir.DataType.FLOAT) == -50
    np.testing.assert_allclose(Session(built)(given)["y"], expected, rtol=0, atol=1e-6)


def test_a_bias_is_no_mask_to_be_softened():
    built, rewrite = net(mask="computed"), FuseAttention(finite_masks=True)
    expected, given = run(built, feeds()), feeds()
    rewrite(built)
    assert rewrite.softened == ()
    np.testing.assert_allclose(Session(built)(given)["y"], expected, rtol=0, atol=1e-6)
