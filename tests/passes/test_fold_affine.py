"""Products and sums with stored numbers go into the convolutions beside them."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import lwqc
from lwqc.passes.fold_affine import FoldAffine
from lwqc.runtime.session import Session
from tests.build import Row, model, normal

WEIGHTS = {
    "w": normal(6, 4, 3, 3, seed=1),
    "b": normal(6, seed=2),
    "w_one": normal(6, 4, 1, 1, seed=3),
    "w_groups": normal(6, 2, 1, 1, seed=4),
    "number": np.float32(1.5),
    "in": normal(4, 1, 1, seed=5) + np.float32(3),
    "out": normal(1, 6, 1, 1, seed=6) + np.float32(3),
    "row": normal(7, seed=7),
}
PADDED = {"pads": [1, 1, 1, 1]}
PLAIN: Row = ("Conv", ["x", "w", "b"], "c", PADDED)
BEHIND: dict[str, list[Row]] = {
    op: [PLAIN, (op, ["c", number], "y", {})]
    for op, number in (("Mul", "out"), ("Add", "out"), ("Sub", "number"), ("Div", "out"))
}
BEHIND["number less"] = [PLAIN, ("Sub", ["number", "c"], "y", {})]
BEHIND["without a bias"] = [("Conv", ["x", "w"], "c", {}), ("Add", ["number", "c"], "y", {})]
BEHIND["both"] = [PLAIN, ("Mul", ["c", "number"], "m", {}), ("Add", ["m", "out"], "y", {})]
FRONT: dict[str, list[Row]] = {
    "sum": [("Add", ["x", "in"], "s", {}), ("Conv", ["s", "w_one", "b"], "y", {})],
    "product": [("Mul", ["in", "x"], "s", {}), ("Conv", ["s", "w", "b"], "y", PADDED)],
    "groups": [
        ("Mul", ["x", "in"], "m", {}),
        ("Sub", ["m", "in"], "s", {}),
        ("Conv", ["s", "w_groups"], "y", {"group": 2}),
    ],
}


def built(rows: list[Row], outputs: tuple[str, ...] = ("y",)):
    used = {name for row in rows for name in row[1]}
    weights = {n: w for n, w in WEIGHTS.items() if n in used}
    return model(rows, weights, {"x": ["batch", 4, 7, 7]}, list(outputs))


@pytest.mark.parametrize("name", [*BEHIND, *FRONT])
def test_folded(name):
    net = built((BEHIND | FRONT)[name])
    feeds = {"x": normal(2, 4, 7, 7)}
    before = Session(net)(feeds)["y"]
    assert FoldAffine()(net).modified
    assert [node.op_type for node in net.graph] == ["Conv"]
    np.testing.assert_allclose(Session(net)(feeds)["y"], before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("last", ["Add", "Sub"])
def test_a_product_moves_through_a_sum_in_front_of_padding(last):
    rows: list[Row] = [
        ("Mul", ["x", "number"], "m", {}),
        (last, ["in", "m"], "s", {}),
        ("Conv", ["s", "w", "b"], "y", PADDED),
    ]
    net = built(rows)
    feeds = {"x": normal(2, 4, 7, 7)}
    before = Session(net)(feeds)["y"]
    assert FoldAffine()(net).modified
    assert [node.op_type for node in net.graph] == ["Add", "Conv"]
    np.testing.assert_allclose(Session(net)(feeds)["y"], before, rtol=1e-4, atol=1e-4)
    assert not FoldAffine()(net).modified


TWICE: Row = ("Conv", ["x", "w"], "z", {})
MISSES: dict[str, tuple[list[Row], tuple[str, ...]]] = {
    "padded": ([("Add", ["x", "in"], "s", {}), ("Conv", ["s", "w"], "y", PADDED)], ("y",)),
    "weight read twice": ([PLAIN, ("Mul", ["c", "out"], "y", {}), TWICE], ("y", "z")),
    "result read twice": (
        [PLAIN, ("Mul", ["c", "out"], "y", {}), ("Abs", ["c"], "z", {})],
        ("y", "z"),
    ),
    "an output": ([PLAIN, ("Mul", ["c", "out"], "y", {})], ("y", "c")),
    "by place": ([PLAIN, ("Mul", ["c", "row"], "y", {})], ("y",)),
    "divided by": ([PLAIN, ("Div", ["number", "c"], "y", {})], ("y",)),
    "product read twice": (
        [("Mul", ["x", "in"], "s", {}), ("Conv", ["s", "w"], "y", {}), ("Abs", ["s"], "z", {})],
        ("y", "z"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISSES)
def test_near_misses_stay(name):
    net = built(*MISSES[name])
    before = [node.op_type for node in net.graph]
    assert not FoldAffine()(net).modified
    assert [node.op_type for node in net.graph] == before


def test_weights_that_are_known_otherwise_stay():
    assert not FoldAffine(whole=("w",))(built(BEHIND["Mul"])).modified


def grey(shape, numbers):
    rows = [("Sub", ["x", "mean"], "a", {}), ("Conv", ["a", "w"], "y", {})]
    weights = {"mean": numbers, "w": normal(4, 3, 3, 3)}
    return model(rows, weights, {"x": shape}, ["y"])


@pytest.mark.parametrize("shape", [["n", 1, 9, 9], ["n", "c", 9, 9]])
def test_numbers_that_make_more_channels_of_one_stay(shape):
    net = grey(shape, normal(1, 3, 1, 1))
    assert FoldAffine()(net).modified is False


def test_numbers_of_a_higher_rank_than_the_operand_stay():
    rows = [("Mul", ["x", "k"], "a", {}), ("Conv", ["a", "w"], "y", {})]
    weights = {"k": normal(1, 1, 1, 1), "w": normal(4, 3, 3, 3)}
    assert FoldAffine()(model(rows, weights, {"x": [3, 9, 9]}, ["y"])).modified is False


@pytest.mark.usefixtures("untimed")
def test_a_product_in_a_body_stays_there():
    net = onnx.parser.parse_model("""<ir_version: 10, opset_import: ["": 20]>
    net (float[1, 3, 9, 9] x, bool c) => (float[1, 4, 7, 7] z) {
        t = Conv (x, w)
        z = If (c) <
            then_branch = a () => (float[1, 4, 7, 7] y1) { y1 = Mul (t, k) },
            else_branch = b () => (float[1, 4, 7, 7] y2) { y2 = Neg (t) }
        >
    }""")
    for name, array in {"w": normal(4, 3, 3, 3), "k": np.float32([2])}.items():
        net.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    built = ir.from_proto(net)
    assert FoldAffine()(built).modified is False
    found = lwqc.compress(
        built, recipe="clean", data=[{"x": normal(1, 3, 9, 9), "c": np.array(True)}]
    )
    assert {n.op_type for n in found.model.graph.all_nodes()} >= {"Conv", "If", "Mul", "Neg"}
