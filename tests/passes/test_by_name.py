"""Rewrites by name: branches, and quantized models that become float ones."""

import numpy as np
import onnx_ir as ir
import pytest

from lwqc.errors import InputError
from lwqc.graph.branches import find_branches
from lwqc.passes.pipeline import Pipeline
from lwqc.testing import applied, assert_harmless, assert_same_outputs, model_of

STREAM = """g (float[n,8] x, float[8,8] a, float[8,8] b) => (float[n,8] y) {
    p = MatMul(x, a)
    q = Relu(p)
    h = Add(x, q)
    r = MatMul(h, b)
    s = Relu(r)
    y = Add(h, s)
}"""
CODES = """g (float[n,8] x, int8[8,8] w) => (float[n,8] y) {
    s = Constant<value = float {0.125}>()
    d = DequantizeLinear(w, s)
    y = MatMul(x, d)
}"""


PRODUCT = "g (KIND[n,8] x, KIND[8,8] w) => (KIND[n,8] y) { y = MatMul(x, w) }"


def names_of(stream):
    return [branch.name for branch in find_branches(stream.graph).branches]


def step(text):
    return Pipeline.parse(text).steps[0]


def test_branches_are_removed_by_name():
    stream = model_of(STREAM, ["a", "b"])
    names = names_of(stream)
    done = applied(step(f"remove-branches{{names={names[1]}}}"), stream)
    assert done.changes == 1
    assert [node.op_type for node in done.model.graph] == ["MatMul", "Relu", "Add", "Identity"]
    with pytest.raises(InputError, match="nothing: "):
        applied(step("remove-branches{names=nothing}"), stream)


def test_branches_in_a_row_read_one_stream():
    stream = model_of(STREAM, ["a", "b"])
    names = names_of(stream)
    done = applied(step(f"parallel-branches{{pairs={','.join(names)}}}"), stream)
    assert done.changes == 1
    readers = [n.op_type for n in done.model.graph.inputs[0].consumers()]
    assert readers.count("MatMul") == 2
    with pytest.raises(InputError, match="3 names do not make pairs"):
        step("parallel-branches{pairs=a,b,c}")


def test_codes_become_floats():
    quantized = model_of(CODES, ["w"])
    assert_harmless(step("restore-floats"), quantized)
    done = applied(step("restore-floats"), quantized)
    assert [node.op_type for node in done.model.graph] == ["MatMul"]
    feeds = {"x": np.eye(8, dtype=np.float32)}
    assert_same_outputs(quantized, done.model, feeds)


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_low_floats_become_wide(kind):
    low = model_of(
        f"g ({kind}[n,8] x, {kind}[8,8] w) => ({kind}[n,8] y) {{ y = MatMul(x, w) }}", ["w"]
    )
    assert_harmless(step("widen-floats"), low)
    product = next(
        n for n in applied(step("widen-floats"), low).model.graph if n.op_type == "MatMul"
    )
    assert product.outputs[0].dtype == ir.DataType.FLOAT
