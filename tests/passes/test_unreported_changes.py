"""A pass that changes a model and reports no change is found out, whatever it changed."""

import numpy as np
import onnx_ir as ir
import pytest

from lwqc.errors import UnsoundResult
from lwqc.passes.base import Pass
from lwqc.passes.instruments import Verify
from lwqc.passes.pipeline import Pipeline
from lwqc.passes.snapshot import Snapshot
from lwqc.testing import (
    TRAPS,
    applied,
    assert_harmless,
    assert_rewrites,
    assert_survives,
    assert_untouched,
    model_of,
)

MODEL = """<ir_version: 10, opset_import: ["": 20, "mine": 1]>
g (float[m,16] x, float[16,16] w, bool c) => (float[m,16] y) {
    h = MatMul(x, w)
    s = Softmax<axis = 1>(h)
    t = mine.twice(s)
    y = If(c) <then_branch = a () => (float[m,16] p) { p = Relu(t) },
               else_branch = b () => (float[m,16] q) { q = Tanh(t) }>
}
<domain: "mine", opset_import: ["": 20]>
twice (a) => (b) { b = Add(a, a) }"""


def _model():
    return model_of(MODEL, ["w"])


def _operator(model):
    model.graph[1].op_type = "LogSoftmax"


def _attribute(model):
    model.graph[1].attributes["axis"] = ir.AttrInt64("axis", 0)


def _input(model):
    model.graph[1].replace_input_with(0, model.graph.inputs[0])


def _weight(model):
    value = model.graph.initializers["w"]
    value.const_value = ir.tensor(value.const_value.numpy() + 1, name="w")


def _numbers_in_place(model):
    model.graph.initializers["w"].const_value.numpy()[3, 4] += 1


def _body(model):
    body = model.graph.node(3).attributes["else_branch"].as_graph()
    body[0].op_type = "Sigmoid"


def _function(model):
    next(iter(model.functions.values()))[0].op_type = "Mul"


def _opset(model):
    model.opset_imports[""] = 21


CHANGES = [_operator, _attribute, _input, _weight, _numbers_in_place, _body, _function, _opset]


def _lies(change):
    class Lies(Pass):
        """Change and report nothing."""

        def rewrite(self, model, ctx):
            change(model)
            return 0

    return Lies()


@pytest.mark.parametrize("change", CHANGES)
def test_verify_finds_what_changed_in_the_model(change):
    with pytest.raises(UnsoundResult, match="lies: changed the graph but reported no"):
        Pipeline((_lies(change),)).run(_model(), instruments=[Verify()])


@pytest.mark.parametrize("change", CHANGES)
def test_helpers_of_tests_find_it_too(change):
    step, model = _lies(change), _model()
    for ask in (
        lambda: applied(step, model),
        lambda: assert_untouched(step, model),
        lambda: assert_harmless(step, model),
        lambda: assert_rewrites(step, model, model),
    ):
        with pytest.raises(AssertionError, match="lies changed the graph but reported no change"):
            ask()


def test_a_trap_finds_it():
    with pytest.raises(AssertionError, match="lies changed the graph but reported no change"):
        assert_survives(_lies(_weight), TRAPS["shared-weight"])


def test_what_changes_nothing_may_be_left_unreported():
    """Names, the order of nodes, what nothing reads, and equal numbers in another tensor."""
    model = _model()
    before = Snapshot(model)
    model.graph[0].outputs[0].name = "other"
    value = model.graph.initializers["w"]
    value.const_value = ir.tensor(np.array(value.const_value.numpy()), name="w")
    node = ir.node("Exp", [model.graph.inputs[0]])
    model.graph.insert_before(model.graph[0], node)
    assert not before.differs(model)


def test_texts_and_defaults_of_inputs_are_looked_at():
    def labelled(words, default):
        model = model_of(MODEL, ["w"])
        for name, tensor in {
            "labels": ir.StringTensor(words, shape=ir.Shape([len(words)]), name="labels"),
            "m0": ir.tensor(np.array([default], np.float32), name="m0"),
        }.items():
            value = ir.Value(name=name, const_value=tensor, shape=ir.Shape(tensor.shape))
            value.type = ir.TensorType(tensor.dtype)
            model.graph.register_initializer(value)
        model.graph.inputs.append(model.graph.initializers["m0"])
        model.graph.outputs.append(model.graph.initializers["labels"])
        return model

    words = [bytes([65 + i]) for i in range(12)]
    taken = Snapshot(labelled(words, 1))
    assert not taken.differs(labelled(words, 1))
    assert taken.differs(labelled(words[::-1], 1))
    assert taken.differs(labelled(words, 2))
