"""The optimizer's rules rewrite the same where they are tried at fewer nodes."""

import contextlib

import onnx_ir as ir
import pytest
from hypothesis import given, settings
from onnxscript import rewriter

from lwqc.passes import fold_constants
from lwqc.passes.fold_constants import FoldConstants
from lwqc.passes.rooted_rules import rooted_rules
from lwqc.testing import applied, model_of, random_models

CHAINS = """g (float[n,8] x) => (float[n,2,4] y, float[n,4] z) {
    a = Cast<to = 11>(x)
    b = Cast<to = 1>(a)
    s = Constant<value = int64[2] {-1, 8}>()
    c = Reshape(b, s)
    t = Constant<value = int64[3] {-1, 2, 4}>()
    y = Reshape(c, t)
    one = Constant<value = float {1.0}>()
    d = Mul(one, c)
    zero = Constant<value = int64[1] {0}>()
    four = Constant<value = int64[1] {4}>()
    axis = Constant<value = int64[1] {1}>()
    e = Slice(d, zero, four, axis)
    eight = Constant<value = int64[1] {8}>()
    f = Slice(d, four, eight, axis)
    z = Add(e, f)
}"""


def both(model, monkeypatch):
    """The folded model as it is, and with every rule tried everywhere."""
    found = applied(FoldConstants(), model).model
    with monkeypatch.context() as patch:
        patch.setattr(fold_constants, "rooted_rules", contextlib.nullcontext)
        return found, applied(FoldConstants(), model).model


def written(model):
    return ir.to_proto(model).SerializeToString(deterministic=True)


def test_chains_are_rewritten_all_the_same(monkeypatch):
    found, expected = both(model_of(CHAINS), monkeypatch)
    assert written(found) == written(expected)
    assert "Mul" not in {node.op_type for node in found.graph}


@settings(max_examples=15, deadline=None, derandomize=True)
@given(random_models())
def test_random_graphs_are_rewritten_all_the_same(drawn):
    with pytest.MonkeyPatch.context() as patch:
        found, expected = both(drawn, patch)
    assert written(found) == written(expected)


@pytest.mark.parametrize(
    ("operator", "number", "stays"),
    [
        *((op, value, value != 0) for op in ("Add", "Sub") for value in (1e-10, 1e-38, -1e-9, 0.0)),
        *((op, value, value != 1) for op in ("Mul", "Div") for value in (1.000009, 0.9999995, 1.0)),
    ],
)
def test_only_numbers_that_do_nothing_are_left_out(operator, number, stays):
    """An epsilon of any size keeps a logarithm of silence finite."""
    model = model_of(
        f"""g (float[n] x) => (float[n] y) {{
        small = Constant<value = float {{{number}}}>()
        s = Mul(x, x) e = {operator}(s, small) y = Log(e) }}"""
    )
    found = applied(FoldConstants(), model).model
    assert (
        sum(node.op_type == operator for node in found.graph) == 1 + (operator == "Mul")
    ) is stays


def test_tolerances_of_the_rules_are_put_back():
    def tolerances():
        return [
            (v._rel_tol, v._abs_tol)
            for rule in rewriter._DEFAULT_REWRITE_RULES
            for node in rule._target_pattern._nodes
            for v in node.inputs
            if hasattr(v, "_rel_tol")
        ]

    before = tolerances()
    assert before
    with rooted_rules():
        assert set(tolerances()) == {(0.0, 0.0)}
    assert tolerances() == before


def test_the_rules_are_put_back():
    before = rewriter._DEFAULT_REWRITE_RULES
    with rooted_rules(), rooted_rules():
        assert rewriter._DEFAULT_REWRITE_RULES is not before
    assert rewriter._DEFAULT_REWRITE_RULES is before
