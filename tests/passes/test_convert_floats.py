"""Conversion to 16-bit floats: types written into the graph, few casts, borders kept."""

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import RemoveUnusedNodesPass, ShapeInferencePass

from lwqc.passes.convert_floats import ConvertFloats, clamp_stored
from lwqc.runtime.session import Session, SessionSettings
from tests.build import model, normal

HALF = ir.DataType.FLOAT16


def converted(built, **options):
    """The converted copy, checked with strict types."""
    copy = built.clone()
    ConvertFloats("float16", **options)(copy)
    RemoveUnusedNodesPass()(copy)
    onnx.checker.check_model(ir.serde.serialize_model(copy), full_check=True)
    return copy


def run(built, feeds):
    return Session(built, SessionSettings(optimize=False))(feeds)


def count(built, op):
    return Counter(node.op_type for node in built.graph.all_nodes())[op]


def two_layers():
    rows = [
        ("MatMul", ["x", "w1"], "a", {}),
        ("Relu", ["a"], "b", {}),
        ("MatMul", ["b", "w2"], "y", {}),
    ]
    weights = {"w1": normal(16, 32, scale=0.1), "w2": normal(32, 8, seed=1, scale=0.1)}
    return model(rows, weights, {"x": ["n", 16]}, ["y"])


X = {"x": normal(4, 16, seed=5)}


def test_weights_are_stored_in_half_and_borders_are_cast():
    low = converted(two_layers())
    assert {v.dtype for v in low.graph.initializers.values()} == {HALF}
    assert count(low, "Cast") == 2
    assert low.graph.inputs[0].dtype == low.graph.outputs[0].dtype == ir.DataType.FLOAT
    assert low.graph.outputs[0].name == "y"
    np.testing.assert_allclose(run(low, X)["y"], run(two_layers(), X)["y"], atol=5e-3)


def test_the_boundary_can_change_too():
    low = converted(two_layers(), boundary=True)
    assert count(low, "Cast") == 0
    assert low.graph.inputs[0].dtype == low.graph.outputs[0].dtype == HALF


def test_kept_nodes_are_surrounded_by_casts():
    low = converted(two_layers(), keep=["b"])
    relu = next(n for n in low.graph if n.op_type == "Relu")
    assert relu.inputs[0].dtype == relu.outputs[0].dtype == ir.DataType.FLOAT
    assert count(low, "Cast") == 4


def test_a_weight_with_float_readers_is_not_converted_but_cast():
    rows = [("MatMul", ["x", "w"], "y", {}), ("MatMul", ["x", "w"], "z", {})]
    built = model(rows, {"w": normal(16, 8)}, {"x": ["n", 16]}, ["y", "z"])
    low = converted(built, keep=["z"])
    assert low.graph.initializers["w"].dtype == ir.DataType.FLOAT
    np.testing.assert_array_equal(run(low, X)["z"], run(built, X)["z"])


def test_operands_whose_type_is_fixed_stay_float32():
    rows = [("Resize", ["x", "", "scales"], "y", {"mode": "nearest"})]
    scales = {"scales": np.array([1, 1, 2, 2], np.float32)}
    built = model(rows, scales, {"x": [1, 2, 4, 4]}, ["y"])
    low = converted(built)
    resize = next(n for n in low.graph if n.op_type == "Resize")
    assert (resize.inputs[0].dtype, resize.inputs[2].dtype) == (HALF, ir.DataType.FLOAT)


def test_operators_without_a_half_form_stay_float32():
    built = model(
        [("Range", ["start", "limit", "delta"], "y", {})],
        {n: np.array(v, np.float32) for n, v in (("start", 0), ("limit", 5), ("delta", 1))},
        {},
        ["y"],
    )
    assert count(converted(built), "Cast") == 0


def test_bodies_of_if_compute_in_half_and_give_float32():
    text = """
    <ir_version: 9, opset_import: ["" : 18]>
    net (float[2,3] x, bool c) => (float[2,3] y) {
      h = Sigmoid(x)
      y = If(c) <
        then_branch = t () => (float[2,3] a) { a = Relu(h) },
        else_branch = e () => (float[2,3] b) { b = Neg(h) }
      >
    }
    """
    built = ir.serde.deserialize_model(onnx.parser.parse_model(text))
    ShapeInferencePass()(built)
    low = converted(built)
    feeds = {"x": normal(2, 3), "c": np.array(False)}
    np.testing.assert_allclose(run(low, feeds)["y"], run(built, feeds)["y"], atol=1e-3)


@pytest.mark.parametrize("fill", [-3.4e38, -np.inf, -5.0])
def test_only_finite_fillings_beyond_the_limit_are_clamped(fill):
    rows = [("Add", ["x", "mask"], "y", {})]
    built = model(rows, {"mask": np.array([0, fill], np.float32)}, {"x": ["n", 2]}, ["y"])
    changed = clamp_stored(built, 3e4)
    stored = built.graph.initializers["mask"].const_value.numpy()
    assert changed == (fill == -3.4e38)
    np.testing.assert_array_equal(stored[1], np.float32(-3e4 if changed else fill))


def test_arithmetic_that_unpacks_codes_is_left_in_float32():
    """ONNX Runtime folds it with its CPU kernels, which know no half arithmetic."""
    rows = [
        ("Cast", ["codes"], "c", {"to": onnx.TensorProto.FLOAT}),
        ("Mul", ["c", "scale"], "w", {}),
        ("MatMul", ["x", "w"], "y", {}),
    ]
    codes = np.arange(16 * 8, dtype=np.uint8).reshape(16, 8)
    built = model(rows, {"codes": codes, "scale": np.float32(0.01)}, {"x": ["n", 16]}, ["y"])
    low = converted(built)
    mul = next(n for n in low.graph if n.op_type == "Mul")
    assert mul.outputs[0].dtype == ir.DataType.FLOAT
    assert next(n for n in low.graph if n.op_type == "MatMul").outputs[0].dtype == HALF


def test_what_reads_a_stored_half_codebook_is_declared_float32():
    rows = [
        ("Cast", ["book"], "b", {"to": onnx.TensorProto.FLOAT}),
        ("Cast", ["codes"], "c", {"to": onnx.TensorProto.INT32}),
        ("Gather", ["b", "c"], "w", {}),
        ("MatMul", ["x", "w"], "y", {}),
    ]
    stored = {"book": np.ones(16, np.float16), "codes": np.zeros((16, 8), np.uint8)}
    built = model(rows, stored, {"x": ["n", 16]}, ["y"])
    for node in built.graph:  # as passes add them
        node.outputs[0].type = built.graph.outputs[0].type if node.op_type == "MatMul" else None
    low = converted(built)
    gather = next(n for n in low.graph if n.op_type == "Gather")
    assert gather.inputs[0].dtype == gather.outputs[0].dtype == ir.DataType.FLOAT
