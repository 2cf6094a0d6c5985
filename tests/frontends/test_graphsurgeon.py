"""What a script did not touch survives; what it did is there; nonsense gets one clear line."""

from __future__ import annotations

import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx.reference import ReferenceEvaluator

from lwqc.errors import InputError
from lwqc.frontends.graphsurgeon import as_pass, from_graphsurgeon, to_graphsurgeon

TEXT = """
<ir_version: 10, opset_import: ["" : 21, "local" : 1, "com.microsoft" : 1],
 producer_name: "maker", producer_version: "2", domain: "a.domain", model_version: 7,
 doc_string: "a model", metadata_props: ["license": "free"]>
main (float[batch, 4] x, bool flag) => (float[batch, rows] y) {
  [first] w = DequantizeLinear <axis = 0, block_size = 2> (q, s)
  [second] h = MatMul (x, w)
  [third] f = local.scale (h)
  [fourth] g = If (flag) <
    then_branch = then_graph () => (float[n, 4] t) { t = MatMul (x, w) },
    else_branch = else_graph () => (float[n, 4] e) { e = Add (x, b) }
  >
  [fifth] k = Add (g, b)
  y = Concat <axis = -1> (f, k)
}
<domain: "local", opset_import: ["" : 21]>
scale (a) => (r) {
  two = Constant <value = float {2.0}> ()
  r = Mul (a, two)
}
"""


@pytest.fixture
def model() -> ir.Model:
    """INT4 weights and metadata everywhere, with an If, a function and symbolic dimensions."""
    proto = onnx.parser.parse_model(TEXT)
    graph = proto.graph
    codes = np.arange(-8, 8, dtype=np.int8).reshape(4, 4).astype(ml_dtypes.int4)
    for name, array in (
        ("q", codes),
        ("s", np.linspace(0.5, 2, 8, dtype=np.float32).reshape(2, 4)),
        ("b", np.arange(4, dtype=np.float32)),
    ):
        tensor = ir.to_proto(ir.Tensor(array, name=name))
        tensor.doc_string = f"tensor {name}"
        onnx.helper.set_metadata_props(tensor, {"origin": name})
        graph.initializer.append(tensor)
    graph.doc_string = "a graph"
    onnx.helper.set_metadata_props(graph, {"graph": "yes"})
    for node in graph.node:
        node.doc_string = f"doc of {node.name}"
        onnx.helper.set_metadata_props(node, {"layer": node.name})
    inner = graph.node[3].attribute[0].g
    onnx.helper.set_metadata_props(inner, {"inner": "graph"})
    onnx.helper.set_metadata_props(inner.node[0], {"inner": "node"})
    for value in (graph.input[0], graph.output[0]):
        value.doc_string = f"value {value.name}"
        onnx.helper.set_metadata_props(value, {"value": value.name})
    graph.input[0].type.tensor_type.shape.dim[1].denotation = "DATA_CHANNEL"
    graph.value_info.append(
        onnx.helper.make_tensor_value_info("h", onnx.TensorProto.FLOAT, ["batch", 4])
    )
    function = proto.functions[0]
    function.doc_string = "doubles"
    onnx.helper.set_metadata_props(function, {"function": "scale"})
    onnx.helper.set_metadata_props(function.node[1], {"inside": "function"})
    return ir.from_proto(proto)


def proto(model: ir.Model) -> onnx.ModelProto:
    return ir.to_proto(model)


def keep(graph: gs.Graph) -> gs.Graph:
    return graph


def test_an_untouched_model_is_equal_as_a_proto(model) -> None:
    before = proto(model)
    result = as_pass(keep)(model)
    assert result.model is not model
    assert proto(result.model) == before
    assert proto(model) == before


@pytest.mark.parametrize("name", ["bert.dynamo", "llama_past.legacy", "resnet50.dynamo"])
def test_architectures_survive_unchanged(name: str) -> None:
    folder = Path(__file__).parents[1] / "zoo"
    sys.path.insert(0, str(folder))
    try:
        from materialize import materialize
    finally:
        sys.path.remove(str(folder))
    model = ir.from_proto(materialize(folder / f"{name}.onnx"))
    assert proto(as_pass(keep)(model).model) == proto(model)


def test_weights_are_shared_and_not_evaluated() -> None:
    def fail() -> ir.TensorProtocol:
        raise AssertionError("evaluated")

    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 21]>\n'
        "g (float[999] x) => (float[999] y) <float[1] b = {1}> { y = Mul(x, b) }"
    )
    big = ir.LazyTensor(fail, dtype=ir.DataType.FLOAT, shape=ir.Shape([999]), name="b")
    model.graph.initializers["b"].const_value = big
    graph = to_graphsurgeon(model)
    kept = graph.tensors()["b"]
    assert (kept.shape, kept.dtype) == ([999], np.float32)
    result = from_graphsurgeon(graph, like=model)
    assert result.graph.initializers["b"].const_value is big


def test_4_bit_values_can_be_read_edited_and_made(model) -> None:
    def edit(graph: gs.Graph) -> gs.Graph:
        q = graph.tensors()["q"]
        assert q.values.dtype == ml_dtypes.int4
        assert q.values[0, 0] == -8
        q.values[0, 0] = 7
        fresh = gs.Constant("fresh", np.array([1, 15], ml_dtypes.uint4))
        out = gs.Variable("codes", np.uint8, [2])
        graph.nodes.append(gs.Node("Cast", "cast", {"to": 2}, [fresh], [out]))
        graph.outputs.append(out)
        return graph

    result = as_pass(edit)(model).model
    changed = result.graph.initializers["q"].const_value
    assert changed.dtype == ir.DataType.INT4
    assert changed.numpy()[0].tolist() == [7, -7, -6, -5]
    assert result.graph.initializers["fresh"].const_value.dtype == ir.DataType.UINT4
    assert model.graph.initializers["q"].const_value.numpy()[0, 0] == -8
    feeds = {"x": np.ones((1, 4), np.float32), "flag": np.array(True)}
    session = ort.InferenceSession(
        proto(result).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    assert session.run(["codes"], feeds)[0].tolist() == [1, 15]


def test_edited_values_and_renamed_constants(model) -> None:
    def edit(graph: gs.Graph) -> None:
        tensors = graph.tensors()
        tensors["b"].values = tensors["b"].values * 10
        tensors["s"].name = "renamed"

    result = as_pass(edit)(model).model
    assert result.graph.initializers["b"].const_value.numpy().tolist() == [0, 10, 20, 30]
    assert result.graph.initializers["renamed"].const_value.numpy().shape == (2, 4)
    assert "s" not in result.graph.initializers


def test_folding_runs_on_shared_weights() -> None:
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 21]>\n'
        "g (float[2] x) => (float[2] y) <float[2] a = {1, 2}, float[2] b = {3, 4}> {\n"
        "  c = Add(a, b)\n  y = Mul(x, c)\n}"
    )
    result = as_pass(lambda graph: graph.fold_constants().cleanup())(model).model
    assert [n.op_type for n in result.graph] == ["Mul"]
    assert result.graph.initializers["c"].const_value.numpy().tolist() == [4, 6]


def test_removed_nodes_take_their_metadata_along_and_edited_ones_keep_theirs(model) -> None:
    def bypass(graph: gs.Graph) -> gs.Graph:
        (call,) = (n for n in graph.nodes if n.name == "third")
        (concat,) = (n for n in graph.nodes if n.op == "Concat")
        concat.inputs[0] = call.inputs[0]
        call.outputs.clear()
        return graph.cleanup()

    result = as_pass(bypass)(model).model
    assert "doc of third" not in str(proto(result))
    assert [n.name for n in result.graph] == ["first", "second", "fourth", "fifth", ""]
    assert result.graph[1].metadata_props == {"layer": "second"}
    x = np.ones((2, 4), np.float32)
    feeds = {"x": x, "flag": np.array(False)}
    (y,) = ReferenceEvaluator(proto(result)).run(None, feeds)
    (before,) = ReferenceEvaluator(proto(model)).run(None, feeds)
    np.testing.assert_array_equal(y[:, :4] * 2, before[:, :4])
    np.testing.assert_array_equal(y[:, 4:], before[:, 4:])


def test_nodes_out_of_order_are_sorted(model) -> None:
    def reverse(graph: gs.Graph) -> None:
        graph.nodes.reverse()

    onnx.checker.check_model(proto(as_pass(reverse)(model).model))


def test_deep_graphs_need_no_recursion() -> None:
    lines = "\n".join(f"a{i + 1} = Relu(a{i})" for i in range(3000))
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 21]>\n'
        f"g (float[2] a0) => (float[2] a3000) {{ {lines} }}"
    )
    assert proto(as_pass(lambda graph: graph.nodes.reverse())(model).model) == proto(model)


def test_inputs_with_a_default_stay_inputs() -> None:
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 21]>\n'
        "g (float[2] a, float[2] x) => (float[2] y) <float[2] a = {1, 2}> { y = Mul(x, a) }"
    )
    assert proto(as_pass(keep)(model).model) == proto(model)


def cut(graph: gs.Graph) -> None:
    """Leave a reader of a value that nothing produces."""
    graph.nodes[1].outputs.clear()


def cycle(graph: gs.Graph) -> None:
    graph.nodes[1].inputs[0] = graph.nodes[2].outputs[0]


def twins(graph: gs.Graph) -> None:
    node = graph.nodes[1]
    node.inputs[1] = gs.Constant("b", np.zeros((4, 4), np.float32))


def crash(graph: gs.Graph) -> None:
    raise KeyError("mine")


def no_graph(graph: gs.Graph) -> str:
    return "text"


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (cut, "not valid ONNX.* h"),
        (cycle, "has a cycle through node (second|third)"),
        (twins, "two tensors named b"),
        (crash, "function crash failed: KeyError: 'mine'"),
        (no_graph, "function no_graph returned str, expected a graphsurgeon graph"),
    ],
)
def test_invalid_results(model, function, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        as_pass(function)(model)
    assert "\n" not in str(caught.value)


def test_overloads_are_refused(model) -> None:
    (function,) = model.functions.values()
    other = function.clone()
    other.overload = "second"
    model.functions[other.identifier()] = other
    with pytest.raises(InputError, match="function local:scale has overloads"):
        to_graphsurgeon(model)


def test_without_the_original_the_weights_survive(model) -> None:
    result = from_graphsurgeon(to_graphsurgeon(model))
    assert result.graph.initializers["q"].const_value is model.graph.initializers["q"].const_value
    assert result.ir_version == 10
    onnx.checker.check_model(proto(result))


def test_a_graph_made_with_graphsurgeon() -> None:
    x, y = gs.Variable("x", np.float32, [2]), gs.Variable("y", np.float32, [2])
    node = gs.Node("Add", inputs=[x, gs.Constant("c", np.ones(2, np.float32))], outputs=[y])
    result = from_graphsurgeon(gs.Graph([node], [x], [y], opset=21))
    assert result.graph.initializers["c"].const_value.numpy().tolist() == [1, 1]
