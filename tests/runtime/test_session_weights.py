"""Sessions take the weights of a model apart from its graph."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from lwqc.model.model_stream import apart
from lwqc.runtime.session import Session

KINDS = ["f2", "f4", "f8", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "?"]


def _model(weight: onnx.TensorProto, nodes: list[onnx.NodeProto], output: str) -> ir.Model:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("i", TensorProto.INT64, ["n"])],
        [helper.make_tensor_value_info(output, weight.data_type, None)],
        [weight],
    )
    imports = [helper.make_opsetid("", 21)]
    return ir.from_proto(helper.make_model(graph, opset_imports=imports, ir_version=10))


def _rows(model: ir.Model) -> np.ndarray:
    (rows,) = Session(model)({"i": np.array([3, 0])}).values()
    return rows


@pytest.mark.parametrize("kind", KINDS)
def test_values_of_each_type_arrive(kind: str) -> None:
    weight = (np.arange(18000).reshape(20, 900) % 7).astype(kind)
    node = helper.make_node("Gather", ["w", "i"], ["y"])
    model = _model(numpy_helper.from_array(weight, "w"), [node], "y")

    graph, weights = apart(model)

    assert list(weights) == ["w"]
    assert len(graph) < 250
    assert np.array_equal(_rows(model), weight[[3, 0]])


def test_types_that_numpy_does_not_know_stay_in_the_model() -> None:
    weight = np.arange(9000).reshape(20, 450).astype(ml_dtypes.bfloat16)
    node = helper.make_node("Gather", ["w", "i"], ["y"])
    tensor = helper.make_tensor("w", TensorProto.BFLOAT16, [20, 450], weight.tobytes(), raw=True)
    model = _model(tensor, [node], "y")

    assert apart(model)[1] == {}
    assert np.array_equal(_rows(model).astype(np.float32), weight[[3, 0]].astype(np.float32))


@pytest.mark.parametrize("listed", [True, False])
def test_a_weight_that_no_node_reads_stays_in_the_model(listed: bool) -> None:
    weight = np.arange(9000, dtype=np.float32).reshape(20, 450)
    node = helper.make_node("Cast", ["i"], ["y"], to=TensorProto.FLOAT)
    model = _model(numpy_helper.from_array(weight, "w"), [node], "w" if listed else "y")

    assert apart(model)[1] == {}
    expected = weight if listed else np.array([3, 0], np.float32)
    assert np.array_equal(_rows(model), expected)


def test_the_runtime_keeps_no_view_of_the_values() -> None:
    weight = np.arange(9000, dtype=np.float32).reshape(20, 450)
    node = helper.make_node("Gather", ["w", "i"], ["y"])
    model = _model(numpy_helper.from_array(weight, "w"), [node], "y")
    array = weight.copy()
    model.graph.initializers["w"].const_value = ir.Tensor(array, name="w")
    session = Session(model)

    array[:] = -1

    (rows,) = session({"i": np.array([3, 0])}).values()
    assert np.array_equal(rows, weight[[3, 0]]), ort.__version__


def test_sizes_stay_in_the_model() -> None:
    """The runtime reads them before it looks for the values."""
    parts = 700
    nodes = [
        helper.make_node("Cast", ["i"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("Split", ["x", "w"], [f"p{k}" for k in range(parts)], axis=0),
        helper.make_node("Neg", [f"p{parts - 1}"], ["y"]),
    ]
    sizes = numpy_helper.from_array(np.ones(parts, np.int64), "w")
    model = _model(sizes, nodes, "z")
    model.graph.outputs[0] = model.graph[-1].outputs[0]
    model.graph.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    (rows,) = Session(model)({"i": np.arange(parts)}).values()
    assert rows.tolist() == [1.0 - parts]
