"""Files that declare what their operators do not give: what is saved computes the original's."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import lwqc
from lwqc.decide.compress import open_version
from lwqc.model import io
from lwqc.runtime.session import Session
from tests.build import normal

FEEDS = {"x": normal(3, 5, 32, seed=1)}


def float_value(name, shape):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def rows_of_products(declared) -> onnx.ModelProto:
    """[a, b, 32] times [32, 48] by way of [a * b, 32]: the rank of the output is computed."""
    weights = {"w": normal(32, 48), "minus": np.array([-1]), "wide": np.array([-1, 32])}
    weights |= {"first": np.array([0]), "second": np.array([1])}
    nodes = [
        helper.make_node("Reshape", ["x", "wide"], ["rows"]),
        helper.make_node("MatMul", ["rows", "w"], ["products"]),
        helper.make_node("Shape", ["x"], ["sizes"]),
        helper.make_node("Gather", ["sizes", "first"], ["a"]),
        helper.make_node("Gather", ["sizes", "second"], ["b"]),
        helper.make_node("Concat", ["a", "b", "minus"], ["target"], axis=0),
        helper.make_node("Reshape", ["products", "target"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [float_value("x", ["a", "b", 32])],
        [float_value("y", declared)],
        [numpy_helper.from_array(a, n) for n, a in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def by_old_unsqueeze(declared) -> onnx.ModelProto:
    """The same by Unsqueeze of opset 12, behind which the rank is not inferred."""
    made = rows_of_products(declared)
    made.opset_import[0].version = 12
    stored = made.graph.initializer
    for name in ("first", "second"):
        old = next(t for t in stored if t.name == name)
        old.CopyFrom(numpy_helper.from_array(np.array(numpy_helper.to_array(old)[0]), name))
    nodes = list(made.graph.node)
    del made.graph.node[:]
    for one in nodes:
        made.graph.node.append(one)
        if one.op_type == "Gather":
            loose = f"{one.output[0]}_loose"
            made.graph.node.append(
                helper.make_node("Unsqueeze", [loose], [one.output[0]], axes=[0])
            )
            made.graph.node[-2].output[0] = loose
    return made


@pytest.mark.parametrize("build", [rows_of_products, by_old_unsqueeze])
@pytest.mark.parametrize("right", [False, True])
def test_a_rank_that_an_output_does_not_have_is_told_and_changes_no_number(build, right):
    given = build(["a", "b", 48] if right else ["n", 48])
    for made in (lwqc.compress(given), lwqc.lower(given, target="cuda", data=[FEEDS])):
        shape = made.model.graph.outputs[0].shape
        assert shape is None or len(shape) == 3
        assert right <= (shape is not None)  # one that is right stays
        notes = made.work.original.model.meta["lwqc_notes"]
        told = [n for n in notes if n.startswith("output y: is declared")]
        assert len(told) == (not right)
        found = Session(io.to_bytes(made.model))(FEEDS)["y"]
        expected = Session(given.SerializeToString())(FEEDS)["y"]
        assert found.shape == expected.shape == (3, 5, 48)
        np.testing.assert_allclose(found, expected, atol=0.05 * np.abs(expected).max())


def test_what_is_not_to_be_run_is_believed():
    work = open_version(io.from_proto(by_old_unsqueeze(["n", 48])), skip_checks=True)
    assert len(work.model.graph.outputs[0].shape) == 2
    assert "session" not in vars(work.original)


def test_ranks_that_bodies_declare_wrongly_stop_nothing():
    """As Paddle2ONNX writes loops: a condition of one number, declared as a scalar."""
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["s", "w"], ["so"]),
            helper.make_node("Sub", ["left", "one"], ["less"]),
            helper.make_node("Cast", ["less"], ["co"], to=TensorProto.BOOL),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
            float_value("s", ["n", 48]),
            float_value("left", [1]),
        ],
        [
            helper.make_tensor_value_info("co", TensorProto.BOOL, []),
            float_value("so", ["n", 48]),
            float_value("less", [1]),
        ],
    )
    stored = {"w": normal(48, 48) / 8, "one": np.ones(1, np.float32)}
    stored |= {"go": np.array(True), "most": np.array(9), "steps": np.full(1, 3, np.float32)}
    graph = helper.make_graph(
        [helper.make_node("Loop", ["most", "go", "x", "steps"], ["y", "end"], body=body)],
        "g",
        [float_value("x", ["n", 48])],
        [float_value("y", ["n", 48])],
        [numpy_helper.from_array(a, n) for n, a in stored.items()],
    )
    given = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    with pytest.raises(onnx.shape_inference.InferenceError, match="differ in rank"):
        onnx.checker.check_model(given, full_check=True)
    feeds = {"x": normal(4, 48, seed=2)}
    expected = Session(given.SerializeToString())(feeds)["y"]
    made = lwqc.quantize(given, bits=8)
    found = Session(io.to_bytes(made.model))(feeds)["y"]
    np.testing.assert_allclose(found, expected, atol=0.05 * np.abs(expected).max())
