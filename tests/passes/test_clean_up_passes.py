"""Passes that leave fewer nodes and the same numbers: in, expected out, a near miss per guard."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from lwqc.model import io
from lwqc.passes.constant_reshape import ConstantReshape
from lwqc.passes.drop_nan_guards import DropNanGuards
from lwqc.passes.flat_transpose import FlatTranspose
from lwqc.passes.fold_constants import FoldConstants
from lwqc.passes.identity_gather import IdentityGather
from lwqc.passes.integer_bias import IntegerBias
from lwqc.passes.late_broadcast import LateBroadcast
from lwqc.runtime.session import Session, SessionSettings, optimized_graph
from tests.build import Row, model, normal

TOLERANCE = 1e-5  # of the largest output
LOWEST = np.finfo(np.float32).min
INT64, BOOL, UINT8 = onnx.TensorProto.INT64, onnx.TensorProto.BOOL, onnx.TensorProto.UINT8


def ops(built: ir.Model) -> dict[str, int]:
    return dict(Counter(node.op_type for node in built.graph))


def run(built: ir.Model, given):
    return Session(built, SessionSettings(optimize=False))(given)


def check(rewrite: ir.passes.InPlacePass, built: ir.Model, *several) -> dict[str, int]:
    """Operators after a pass that must have changed the model, but none of its outputs."""
    copy = built.clone()
    assert rewrite(copy).modified
    onnx.checker.check_model(io.to_bytes(copy), full_check=True)
    for given in several:
        found = run(copy, given)
        for name, expected in run(built, given).items():
            scale = max(float(np.abs(expected).max()), 1e-6)
            np.testing.assert_allclose(found[name], expected, rtol=0, atol=TOLERANCE * scale)
            assert found[name].shape == expected.shape
    return ops(copy)


def untouched(rewrite: ir.passes.InPlacePass, built: ir.Model) -> None:
    before = ops(built)
    assert not rewrite(built).modified
    assert ops(built) == before


# FoldConstants


def test_batch_norm_goes_into_the_convolution():
    rows: list[Row] = [
        ("Conv", ["x", "w", "b"], "c", {"pads": [1, 1, 1, 1]}),
        ("BatchNormalization", ["c", "gain", "bias", "mean", "var"], "y", {}),
    ]
    weights = {"w": normal(4, 3, 3, 3), "b": normal(4, seed=1), "gain": normal(4, seed=2),
               "bias": normal(4, seed=3), "mean": normal(4, seed=4),
               "var": np.abs(normal(4, seed=5)) + 1}  # fmt: skip
    built = model(rows, weights, {"x": ["n", 3, 8, 8]}, ["y"])
    assert check(FoldConstants(), built, {"x": normal(2, 3, 8, 8, seed=6)}) == {"Conv": 1}


def test_constants_casts_identities_and_equal_expressions():
    rows: list[Row] = [
        ("Add", ["two", "two"], "four", {}),
        ("Identity", ["x"], "i", {}),
        ("Cast", ["i"], "f", {"to": 1}),
        ("Mul", ["f", "four"], "a", {}),
        ("Mul", ["x", "four"], "b", {}),
        ("Add", ["a", "b"], "s", {}),
        ("Transpose", ["s"], "t", {"perm": [1, 0]}),
        ("Transpose", ["t"], "u", {"perm": [1, 0]}),
        ("Relu", ["u"], "y", {}),
    ]
    built = model(rows, {"two": np.float32([2.0])}, {"x": ["n", 5]}, ["y"])
    assert check(FoldConstants(), built, {"x": normal(3, 5)}) == {"Mul": 1, "Add": 1, "Relu": 1}


def test_results_above_the_limit_are_not_stored():
    rows: list[Row] = [("Expand", ["one", "size"], "e", {}), ("Add", ["x", "e"], "y", {})]
    weights = {"one": np.float32([1.0]), "size": np.asarray([512, 1024])}
    built = model(rows, weights, {"x": [512, 1024]}, ["y"])
    untouched(FoldConstants(), built)
    assert check(FoldConstants(1 << 20), built, {"x": normal(512, 1024)}) == {"Add": 1}


# ConstantReshape


def heads(target: list[str], weights=None, shape=("b", "s", 12)) -> ir.Model:
    rows: list[Row] = [
        ("Shape", ["x"], "b1", {"start": 0, "end": 1}),
        ("Shape", ["x"], "s1", {"start": 1, "end": 2}),
        ("Concat", target, "t", {"axis": 0}),
        ("Reshape", ["x", "t"], "r", {}),
        ("Relu", ["r"], "y", {}),
    ]
    sizes = {"three": np.asarray([3]), "four": np.asarray([4]), "rest": np.asarray([-1])}
    used = {n: v for n, v in sizes.items() if n in target}
    return model(rows, used, {"x": list(shape)}, ["y"])


@pytest.mark.parametrize(
    "target", [["b1", "s1", "three", "four"], ["b1", "rest", "four"], ["rest", "three", "four"]]
)
def test_targets_of_known_sizes_are_stored(target):
    several = [{"x": normal(2, 5, 12)}, {"x": normal(1, 1, 12)}]
    assert check(ConstantReshape(), heads(target), *several) == {"Reshape": 1, "Relu": 1}


def test_reshapes_that_change_nothing_go():
    built = heads(["b1", "s1", "rest"])
    assert check(ConstantReshape(), built, {"x": normal(2, 5, 12)}) == {"Relu": 1}


def test_two_sizes_that_change_their_axis_stay_computed():
    untouched(ConstantReshape(), heads(["four", "b1", "s1", "three"]))


# FlatTranspose


def flat(perm, last, shape=("b", 3, 5, 4)) -> ir.Model:
    rows: list[Row] = [
        ("Reshape", ["x", "flat"], "f", {}),
        ("Transpose", ["f"], "t", {"perm": perm}),
        ("Reshape", ["t", "last"], "y", {}),
    ]
    weights = {"flat": np.asarray([-1, 5, 4]), "last": np.asarray(last)}
    return model(rows, weights, {"x": list(shape)}, ["y"])


def test_a_transpose_of_the_last_axes_needs_no_reshapes():
    built = flat([0, 2, 1], [-1, 3, 4, 5])
    assert check(FlatTranspose(), built, {"x": normal(2, 3, 5, 4)}) == {"Transpose": 1}


@pytest.mark.parametrize(("perm", "last"), [([0, 2, 1], [-1, 3, 5, 4]), ([1, 0, 2], [-1, 3, 4, 5])])
def test_other_transposes_keep_their_reshapes(perm, last):
    untouched(FlatTranspose(), flat(perm, last))


# IdentityGather


def gathered(rows: list[Row]) -> ir.Model:
    """mask[i, j] of all i and j, written as exporters do."""
    before: list[Row] = [
        ("Shape", ["mask"], "b1", {"start": 0, "end": 1}),
        ("Shape", ["mask"], "s1", {"start": 1, "end": 2}),
        ("Squeeze", ["b1"], "b", {}),
        ("Squeeze", ["s1"], "s", {}),
        ("Range", ["zero", "b", "one"], "i", {}),
        ("Range", ["zero", "s", "one"], "j", {}),
        ("Unsqueeze", ["i", "axes"], "ii", {}),
    ]
    weights = {
        "zero": np.asarray(0), "one": np.asarray(1), "two": np.asarray([2]),
        "most": np.asarray(1 << 20),
        "axes": np.asarray([1, 2, 3]), "last": np.asarray([-1]), "flat": np.asarray([-1]),
    }  # fmt: skip
    after: list[Row] = [("Neg", ["m"], "y", {})]
    read = {n for _, used, _, _ in before + rows for n in used}
    return model(
        [*before, *rows, *after],
        {n: v for n, v in weights.items() if n in read},
        {"mask": ["b", "s"]},
        ["y"],
        types={"mask": INT64, "y": INT64},
    )


PAIRS: list[Row] = [
    ("Max", ["ii", "j"], "both", {}),
    ("Shape", ["both"], "size", {}),
    ("Expand", ["ii", "size"], "i4", {}),
    ("Expand", ["j", "size"], "j4", {}),
    ("Unsqueeze", ["i4", "last"], "i5", {}),
    ("Unsqueeze", ["j4", "last"], "j5", {}),
    ("Concat", ["i5", "j5"], "pairs", {"axis": -1}),
    ("GatherND", ["mask", "pairs"], "m", {}),
]
OFFSETS: list[Row] = [
    ("Reshape", ["mask", "flat"], "f", {}),
    ("Mul", ["ii", "s1"], "o", {}),
    ("Add", ["o", "j"], "index", {}),
    ("Gather", ["f", "index"], "m", {}),
]
MASKS = [{"mask": np.random.default_rng(0).integers(0, 9, (b, s))} for b, s in ((2, 5), (1, 1))]


@pytest.mark.parametrize("rows", [PAIRS, OFFSETS], ids=["pairs", "offsets"])
def test_a_mask_that_is_read_in_its_own_order_is_no_gather(rows):
    assert check(IdentityGather(), gathered(rows), *MASKS) == {"Unsqueeze": 1, "Neg": 1}


def test_a_mask_that_is_read_in_another_order_is_one():
    swapped = [(op, ["j5", "i5"] if out == "pairs" else used, out, kw)
               for op, used, out, kw in PAIRS]  # fmt: skip
    untouched(IdentityGather(), gathered(swapped))


def test_a_mask_whose_indices_are_capped_at_a_size_not_tried_is_one():
    capped = [(op, ["index2" if v == "index" else v for v in used], out, kw)
              for op, used, out, kw in OFFSETS]  # fmt: skip
    capped.insert(3, ("Min", ["index", "most"], "index2", {}))
    untouched(IdentityGather(), gathered(capped))


def test_a_mask_of_which_a_part_is_read_is_one():
    less = [("Mul", ["ii", "two"], "o", {}) if out == "o" else (op, used, out, kw)
            for op, used, out, kw in OFFSETS]  # fmt: skip
    untouched(IdentityGather(), gathered(less))


# LateBroadcast


def masked(rows: list[Row], last: Row | None = None) -> ir.Model:
    """A mask [b, 1, 1, s] that is made [b, 1, s, s] before it is added to scores."""
    end: list[Row] = [
        ("Where", ["wide", "zero", "low"], "a", {}),
        last or ("Add", ["scores", "a"], "y", {}),
    ]
    weights = {
        "zero": np.float32(0), "low": np.float32(-9), "axes": np.asarray([0, 1, 3]),
        "n0": np.asarray(0), "n1": np.asarray(1), "window": np.asarray(4096),
    }  # fmt: skip
    read = {n for _, used, _, _ in rows + end for n in used}
    inputs = {"keep": ["b", 1, 1, "s"], "scores": ["b", 3, "s", "s"]}
    return model(
        rows + end,
        {n: v for n, v in weights.items() if n in read},
        {n: s for n, s in inputs.items() if n in read},
        ["y"],
        types={"keep": BOOL},
    )


def always(operator: str, compare: str) -> list[Row]:
    return [
        ("Shape", ["keep"], "s1", {"start": 3, "end": 4}),
        ("Squeeze", ["s1"], "s", {}),
        ("Range", ["n0", "s", "n1"], "j", {}),
        ("Unsqueeze", ["j", "axes"], "rows", {}),
        (compare, ["rows", "n0"], "sure", {}),
        (operator, ["sure", "keep"], "wide", {}),
    ]


EXPANDED: list[Row] = [
    ("Shape", ["keep"], "s1", {"start": 3, "end": 4}),
    ("Concat", ["s1", "s1"], "size", {"axis": 0}),
    ("Expand", ["keep", "size"], "wide", {}),
]
SCORES = [
    {"keep": np.random.default_rng(0).random((b, 1, 1, s)) < 0.5, "scores": normal(b, 3, s, s)}
    for b, s in ((2, 5), (1, 1))
]


@pytest.mark.parametrize(
    "rows",
    [always("And", "GreaterOrEqual"), always("Or", "Less"), EXPANDED],
    ids=["and", "or", "expand"],
)
def test_masks_stay_small(rows):
    assert check(LateBroadcast(), masked(rows), *SCORES) == {"Where": 1, "Add": 1}


@pytest.mark.parametrize(
    "rows", [always("And", "Greater"), always("Or", "LessOrEqual")], ids=["and", "or"]
)
def test_conditions_that_are_not_always_the_same_stay(rows):
    untouched(LateBroadcast(), masked(rows))


def test_a_window_wider_than_the_sequences_that_were_tried_stays():
    rows = always("And", "LessOrEqual")
    rows[4] = ("LessOrEqual", ["rows", "window"], "sure", {})
    untouched(LateBroadcast(), masked(rows))


@pytest.mark.parametrize(
    "last", [("Neg", ["a"], "y", {}), ("ReduceSum", ["a"], "y", {}), ("Add", ["a", "a"], "y", {})],
    ids=["output", "sum", "itself"],
)  # fmt: skip
def test_sizes_that_something_needs_stay(last):
    untouched(LateBroadcast(), masked(EXPANDED, last))


# DropNanGuards


def repaired(mask: list[Row], weights=None, inputs=None) -> ir.Model:
    rows: list[Row] = [
        ("MatMul", ["q", "k"], "s", {}),
        *mask,
        ("Softmax", ["m"], "p", {"axis": -1}),
        ("IsNaN", ["p"], "nan", {}),
        ("Where", ["nan", "zero", "p"], "r", {}),
        ("Relu", ["r"], "y", {}),
    ]
    known = {"zero": np.float32(0), "lowest": np.float32(LOWEST), "inf": np.float32(-np.inf),
             "half": np.float32(0.5), "bias": normal(4, 5)} | (weights or {})  # fmt: skip
    read = {n for _, used, _, _ in rows for n in used}
    declared = {"q": [2, 4, 3], "k": [2, 3, 5], "keep": [2, 1, 5], "free": [2, 1, 5]}
    return model(
        rows,
        {n: v for n, v in known.items() if n in read},
        {n: s for n, s in declared.items() if n in read},
        ["y"],
        types={"keep": BOOL},
    )


def chosen(low: str) -> list[Row]:
    return [("Where", ["keep", "zero", low], "a", {}), ("Add", ["s", "a"], "m", {})]


UNMASKED: list[Row] = [("Mul", ["s", "half"], "m", {})]
STORED: list[Row] = [("Mul", ["s", "half"], "t", {}), ("Add", ["t", "bias"], "m", {})]
FREE: list[Row] = [("Add", ["s", "free"], "m", {})]
GUARDED = {
    "q": normal(2, 4, 3), "k": normal(2, 3, 5, seed=1), "free": normal(2, 1, 5, seed=2),
    "keep": np.asarray([[[True, False, True, True, False]], [[False] * 5]]),
}  # fmt: skip


@pytest.mark.parametrize(
    "mask", [UNMASKED, STORED, chosen("lowest")], ids=["none", "stored", "lowest"]
)
def test_nan_that_cannot_be_is_not_looked_for(mask):
    found = check(DropNanGuards(), repaired(mask), GUARDED)
    assert not {"IsNaN"} & set(found)


@pytest.mark.parametrize("mask", [chosen("inf"), FREE], ids=["inf", "input"])
def test_nan_that_may_be_is_repaired_unless_accepted(mask):
    built, rewrite = repaired(mask), DropNanGuards()
    untouched(rewrite, built)
    assert rewrite.left == {"r": "a row of its mask may be -inf only"}
    rewrite = DropNanGuards(accept=True)
    assert rewrite(built).modified
    assert rewrite.accepted == ["r"]
    assert "IsNaN" not in ops(built)


def test_two_lowest_numbers_may_add_up_to_infinity():
    twice: list[Row] = [*chosen("lowest")[:1], ("Add", ["a", "a"], "b", {}),
                        ("Add", ["s", "b"], "m", {})]  # fmt: skip
    untouched(DropNanGuards(), repaired(twice))


# IntegerBias


def integer(bias: np.ndarray, more: list[Row] | None = None) -> ir.Model:
    rows: list[Row] = [
        ("DynamicQuantizeLinear", ["x"], "c", {}),
        ("MatMulIntegerToFloat", ["c", "w", "xs", "ws", "xz"], "m", {"domain": "com.microsoft"}),
        ("Add", ["m", "b"], "y", {}),
        *(more or []),
    ]
    codes = np.random.default_rng(0).integers(-99, 99, (8, 6)).astype(np.int8)
    proto = onnx.helper.make_model(
        onnx.helper.make_graph(
            [
                onnx.helper.make_node(op, used, [out, "xs", "xz"] if out == "c" else [out], **kw)
                for op, used, out, kw in rows
            ],
            "test",
            [onnx.helper.make_tensor_value_info("x", 1, ["n", 8])],
            [
                onnx.helper.make_tensor_value_info(n, 1, ["n", 6])
                for n in ["y", "z"][: len(rows) - 2]
            ],
            [
                onnx.numpy_helper.from_array(v, n)
                for n, v in {"w": codes, "ws": np.abs(normal(6)) + 1, "b": bias}.items()
            ],
        ),
        opset_imports=[
            onnx.helper.make_opsetid("", 20),
            onnx.helper.make_opsetid("com.microsoft", 1),
        ],
        ir_version=9,
    )
    return ir.serde.deserialize_model(proto)


def test_biases_are_added_by_the_integer_kernel():
    built = integer(normal(6, seed=1))
    found = check(IntegerBias(), built, {"x": normal(4, 8)})
    assert found == {"DynamicQuantizeLinear": 1, "MatMulIntegerToFloat": 1}
    IntegerBias()(built)
    assert [node.op_type for node in optimized_graph(built).node] == ["DynamicQuantizeMatMul"]


@pytest.mark.parametrize("shape", [(1,), (1, 6), (4, 6)])
def test_other_additions_stay(shape):
    untouched(IntegerBias(), integer(normal(*shape)))


def test_products_that_something_else_reads_stay():
    untouched(IntegerBias(), integer(normal(6), [("Relu", ["m"], "z", {})]))
