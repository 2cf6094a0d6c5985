"""What JAX writes around means and variances: axes that come back, choices that are made."""

import numpy as np
import onnx_ir as ir
import pytest

from lwqc.model import io
from lwqc.passes.cleanup import clean_up
from lwqc.passes.decided_where import DecidedWhere
from lwqc.passes.kept_axes import KeptAxes
from lwqc.runtime.session import Session
from tests.build import normal
from tests.frontends.make_files import FILES

HEAD = '<ir_version: 10, opset_import: ["": 21]>'
MEAN = f"""{HEAD} g (float[n, 5, 8] x) => (float[n, 5, 8] y)
<int64[1] axes = {{2}}, int64[3] back = {{-1, 5, 1}}> {{
    mean = ReduceMean<keepdims = 0>(x, axes)
    column = Reshape(mean, back)
    y = Sub(x, column)
}}"""
WHERE = f"""{HEAD} g (float[n, 5] x) => (float[n, 5] y)
<bool[1] yes = {{1}}, float nan = {{-1.0}}> {{
    h = Relu(x)
    w = Where(yes, h, nan)
    y = Neg(w)
}}"""


def operators(model):
    return [node.op_type for node in model.graph]


def same(given, changed, feeds):
    a, b = Session(given)(feeds)["y"], Session(changed)(feeds)["y"]
    np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("old", "new"), [("", ""), ("Reshape(mean, back)", "Unsqueeze(mean, axes)"), ("{2}", "{-1}")]
)
def test_axes_that_come_back_are_kept(old, new):
    given = ir.from_onnx_text(MEAN.replace(old, new) if old else MEAN)
    if new == "{-1}":
        given = ir.from_onnx_text(MEAN.replace("axes = {2}", "axes = {-1}"))
    changed = given.clone()
    assert KeptAxes()(changed).modified
    assert operators(changed) == ["ReduceMean", "Sub"]
    assert not KeptAxes()(changed).modified
    same(given, changed, {"x": normal(3, 5, 8)})


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("{-1, 5, 1}", "{-1, 1, 5}"),  # another axis
        ("y = Sub(x, column)", "z = Neg(mean)\n    y = Sub(column, z)"),  # also read without
        ("<keepdims = 0>", ""),
    ],
)
def test_other_axes_stay(old, new):
    text = MEAN.replace(old, new).replace("float[n, 5, 8] y", "float[a, b, c] y")
    assert not KeptAxes()(ir.from_onnx_text(text)).modified


@pytest.mark.parametrize("yes", [True, False])
def test_choices_that_are_made(yes):
    text = WHERE if yes else WHERE.replace("yes = {1}", "yes = {0}").replace("h, nan", "nan, h")
    given = ir.from_onnx_text(text)
    changed = given.clone()
    assert DecidedWhere()(changed).modified
    assert operators(changed) == ["Relu", "Neg"]
    same(given, changed, {"x": normal(3, 5)})


def test_choices_of_choices():
    text = WHERE.replace("y = Neg(w)", "v = Where(yes, w, nan)\n    y = Neg(v)")
    changed = ir.from_onnx_text(text)
    DecidedWhere()(changed)
    assert operators(changed) == ["Relu", "Neg"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("bool[1] yes = {1}", "bool[5] yes = {1, 0, 1, 1, 1}"),
        ("h, nan", "nan, h"),  # a single number becomes a tensor
        ("w = Where(yes, h, nan)\n    y = Neg(w)", "y = Where(yes, h, nan)"),  # an output's name
    ],
)
def test_other_choices_stay(old, new):
    assert not DecidedWhere()(ir.from_onnx_text(WHERE.replace(old, new))).modified


def test_norms_and_activations_of_jax_are_one_operator():
    cleaned = clean_up(io.load(FILES / "jax.onnx"))
    found = operators(cleaned.model)
    assert found.count("LayerNormalization") == 2
    assert found.count("Gelu") == found.count("Attention") == 1
    assert "Where" not in found
