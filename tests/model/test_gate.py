"""Models that contradict themselves are refused in one line; each case is a kind of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from lwqc.errors import InputError
from lwqc.model import inference, io
from lwqc.model.node_schemas import RUNTIME_ATTRIBUTES
from lwqc.runtime.session import Session
from tests.fuzz.corpus import MODELS
from tests.odd_files import MLP, mlp, proto, value

node = helper.make_node
Change = Callable[[onnx.ModelProto], None]


def plain() -> onnx.ModelProto:
    return proto(mlp(), [value("x", ["n", 64])], [value("y", ["n", 32])], MLP)


def attribute(**given: object) -> Change:
    """The Relu in the middle gets attributes."""
    return lambda m: m.graph.node[1].attribute.extend(
        helper.make_attribute(name, content) for name, content in given.items()
    )


def operator(at: int, *made: onnx.NodeProto) -> Change:
    return lambda m: m.graph.node[at].CopyFrom(made[0])


def added(*made: onnx.NodeProto) -> Change:
    return lambda m: m.graph.node.extend(made)


def body(*inner: onnx.NodeProto, output: str = "b") -> onnx.GraphProto:
    return helper.make_graph(list(inner), "then", [], [value(output, None)])


def choice(*inner: onnx.NodeProto, output: str = "b") -> Change:
    """An If with these nodes in both of its bodies."""

    def change(m: onnx.ModelProto) -> None:
        made = body(*inner, output=output)
        m.graph.initializer.append(helper.make_tensor("flag", TensorProto.BOOL, [], [True]))
        m.graph.node.append(node("If", ["flag"], ["z"], then_branch=made, else_branch=made))

    return change


def called(*inner: onnx.NodeProto, output: str = "q", name: str = "Layer") -> Change:
    """A function of these nodes that reads p."""

    def change(m: onnx.ModelProto) -> None:
        ids = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
        m.functions.append(helper.make_function("own", name, ["p"], [output], list(inner), ids))
        m.opset_import.append(helper.make_opsetid("own", 1))

    return change


def both(*changes: Change) -> Change:
    return lambda m: [change(m) for change in changes] and None


def listed(*infos: onnx.ValueInfoProto) -> Change:
    return lambda m: m.graph.value_info.extend(infos)


def outputs(*infos: onnx.ValueInfoProto) -> Change:
    def change(m: onnx.ModelProto) -> None:
        del m.graph.output[:]
        m.graph.output.extend(infos)

    return change


def inputs(*infos: onnx.ValueInfoProto) -> Change:
    return lambda m: m.graph.input.extend(infos)


def two_fields(m: onnx.ModelProto) -> None:
    m.graph.node[1].attribute.add(name="alpha", type=1, f=1.0, i=3)


def no_kind(m: onnx.ModelProto) -> None:
    m.graph.node[1].attribute.add(name="alpha", f=1.0)


def reference(m: onnx.ModelProto) -> None:
    m.graph.node[1].attribute.add(name="alpha", type=1, ref_attr_name="slope")


def borrowed(kind: int) -> onnx.NodeProto:
    made = node("LeakyRelu", ["p"], ["q"])
    made.attribute.add(name="alpha", type=kind, ref_attr_name="slope")
    return made


LAYER = node("Layer", ["p"], ["q"], domain="own")
CASES: dict[str, tuple[Change, str]] = {
    "reads nothing": (operator(1, node("Relu", ["none"], ["r"])), "reads none, which nothing"),
    "made twice": (added(node("Relu", ["x"], ["a"])), "makes a, which is there already"),
    "made over an input": (added(node("Relu", ["a"], ["x"])), "makes x"),
    "made over a weight": (added(node("Relu", ["a"], ["w"])), "makes w"),
    "stored twice": (lambda m: m.graph.initializer.append(MLP[0]), "w is given twice"),
    "two inputs of a name": (inputs(value("x", ["n", 64])), "x is given twice"),
    "input without a name": (inputs(value("", ["n"])), "has no name"),
    "output of nothing": (outputs(value("none", ["n"])), "output none: nothing makes it"),
    "output without a name": (outputs(value("", ["n"])), "nothing makes it"),
    "no outputs": (outputs(), "has no outputs"),
    "output twice": (outputs(value("y", None), value("y", None)), "y is listed twice"),
    "node without outputs": (added(node("Relu", ["x"], [])), "Relu: has no output"),
    "node that leaves out its output": (added(node("Relu", ["x"], [""])), "Relu: has no output"),
    "no operator": (added(node("", ["x"], ["z"])), "is no operator"),
    "domain that is not imported": (
        added(node("Relu", ["x"], ["z"], domain="own")), "imports no operators of own",
    ),
    "body reads nothing": (choice(node("Relu", ["none"], ["b"])), "reads none, which nothing"),
    "body hands out what is outside": (
        choice(node("Relu", ["x"], ["c"]), output="x"), "output x: nothing makes it",
    ),
    "function reads what is outside": (called(node("Relu", ["x"], ["q"])), "function Layer: Relu"),
    "function makes nothing": (called(node("Relu", ["p"], ["z"])), "output q: nothing makes it"),
    "function with a borrowed body": (called(borrowed(5)), "takes its body from whoever calls"),
    "function with borrowed bodies": (called(borrowed(10)), "takes its body from whoever calls"),
    "function calls itself": (called(LAYER), "function Layer: calls itself"),
    "functions in a circle": (
        both(called(node("Other", ["p"], ["q"], domain="own")), called(LAYER, name="Other")),
        "calls itself, or another one that does",
    ),
    "call with too many outputs": (
        both(called(node("Relu", ["p"], ["q"])),
             added(node("Layer", ["x"], ["f", "g"], domain="own"))),
        "has 2 outputs; its function has 1",
    ),
    "call with an attribute": (
        both(called(node("Relu", ["p"], ["q"])),
             added(node("Layer", ["x"], ["f"], domain="own", a=1))),
        "attribute a: its function has none",
    ),
    "attribute of the runtime": (
        both(lambda m: m.opset_import.append(helper.make_opsetid("com.microsoft", 1)),
             added(node("FusedMatMul", ["x", "w"], ["z"], domain="com.microsoft", transA="x"))),
        "attribute transA: is not of type INT",
    ),
    "function twice": (
        both(called(node("Relu", ["p"], ["q"])), called(node("Neg", ["p"], ["q"]))),
        "function Layer: is there twice",
    ),
    "unknown attribute": (attribute(axis=1), "attribute axis: the operator has none"),
    "attribute of another type": (
        operator(1, node("LeakyRelu", ["a"], ["r"], alpha="x")), "attribute alpha: is not of type",
    ),
    "attribute twice": (both(attribute(a=1), attribute(a=2)),
                        "attribute a: is given twice"),
    "attribute of two values": (two_fields, "holds i, which is not of its type"),
    "attribute without a type": (no_kind, "has no type"),
    "attribute of no function": (reference, "refers to that of a function, but is in none"),
    "attribute that is missing": (operator(1, node("Cast", ["a"], ["r"])), "to is missing"),
    "constant without a value": (added(node("Constant", [], ["z"])), "has 0 values"),
    "too many inputs": (operator(1, node("Relu", ["a", "a"], ["r"])), "has 2 inputs; expected 1"),
    "too few inputs": (operator(1, node("Where", ["a"], ["r"])), "has 1 inputs; expected 3"),
    "no inputs": (operator(1, node("Concat", [], ["r"], axis=0)), "expected at least 1"),
    "too many outputs": (operator(1, node("Relu", ["a"], ["r", "z"])), "has 2 outputs; expected 1"),
    "input left out": (operator(1, node("Add", ["a", ""], ["r"])), "leaves out B"),
    "products that do not fit": (
        operator(1, node("Concat", ["a", "a"], ["r"], axis=1)), "do not fit together",
    ),
    "a rank that does not fit": (operator(1, node("Conv", ["a", "w"], ["r"])), "do not fit"),
    "an axis that is not there": (
        operator(1, node("Softmax", ["a"], ["r"], axis=7)), "do not fit together",
    ),
    "another type": (listed(value("a", ["n", 96], 7)), "is declared as INT64"),
    "a type that there is none of": (listed(value("a", ["n", 96], 65)), "is declared as type 65"),
    "default of another rank": (inputs(value("w", [6144])), "its default 2"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_contradicts_itself_is_refused(name):
    change, words = CASES[name]
    built = plain()
    change(built)
    with pytest.raises(InputError) as caught:
        io.from_proto(built)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_ranks_that_a_runtime_corrects_are_corrected_and_told_of_outputs():
    built = plain()
    listed(value("a", ["n", 8, 12]))(built)
    outputs(value("y", [32]))(built)
    made = io.from_proto(built)
    assert made.meta["lwqc_notes"] == (
        "output y: is declared with 1 dimensions, its operator gives 2",
    )
    assert made.graph.outputs[0].shape[1] == 32
    shapes = {v.name: v.shape for node in made.graph for v in node.outputs}
    assert len(shapes["a"]) == 2
    feeds = {"x": np.ones((3, 64), np.float32)}
    assert Session(made)(feeds)["y"].shape == Session(built.SerializeToString())(feeds)["y"].shape


@pytest.mark.parametrize("name", MODELS)
def test_sound_models_pass(name):
    proto = MODELS[name]()
    made = io.from_proto(proto)
    stored = {t.name for t in proto.graph.initializer}
    needed = {v.name for v in proto.graph.input} - stored
    assert needed <= {v.name for v in made.graph.inputs}
    assert len(made.graph.outputs) >= len(proto.graph.output)


def test_sizes_that_contradict_are_left_to_the_runtime():
    built = plain()
    listed(value("a", [5, 96]))(built)
    outputs(value("y", ["m", 32]))(built)
    made = io.from_proto(built)
    assert str(made.graph.outputs[0].shape) == "[m,32]"


def test_weights_do_not_go_to_the_inference(monkeypatch):
    seen = []
    real = inference._process().ask
    monkeypatch.setattr(
        inference._process(),
        "ask",
        lambda *request, **options: seen.append(request[2]) or real(*request, **options),
    )
    io.from_proto(plain())
    assert 0 < len(seen[0]) < min(np.prod(t.dims) for t in MLP)


def test_an_inference_that_dies_refuses_the_model(monkeypatch, tmp_path):
    script = tmp_path / "child.py"
    script.write_text("import os, sys; sys.stdin.buffer.read(1); os.abort()")
    inference._process().close()
    monkeypatch.setattr(inference._Inference, "script", script)
    with pytest.raises(InputError, match=r"died.*SIGABRT") as caught:
        io.from_proto(plain())
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    io.from_proto(plain())


def test_types_of_the_runtime_s_own_attributes():
    """Where this build of the runtime tells its schemas: no name has two types there."""
    state = pytest.importorskip("onnxruntime.capi.onnxruntime_pybind11_state")
    if not hasattr(state, "get_all_operator_schema"):
        pytest.skip("this build of the runtime does not tell its schemas")
    kinds = onnx.AttributeProto.AttributeType
    for schema in state.get_all_operator_schema():
        if schema.domain == "com.microsoft":
            for name, found in schema.attributes.items():
                wanted = RUNTIME_ATTRIBUTES.get(name)
                told = str(found.type).rpartition(".")[2]
                assert wanted is None or kinds.Name(wanted) == told, (schema.name, name)
