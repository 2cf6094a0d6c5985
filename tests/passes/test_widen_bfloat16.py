"""Bfloat16 models run in float32, rounded after every operator."""

import ml_dtypes
import numpy as np
import onnx_ir as ir

from lwqc.passes.convert_floats import ConvertFloats
from lwqc.passes.widen_bfloat16 import WidenBfloat16, has_bfloat16
from lwqc.runtime.session import Session, SessionSettings
from tests.build import model, normal


def rounded(x):
    return np.asarray(x, np.float32).astype(ml_dtypes.bfloat16).astype(np.float32)


def test_every_result_is_rounded():
    w = normal(16, 8)
    rows = [("MatMul", ["x", "w"], "h", {}), ("Mul", ["h", "h"], "y", {})]
    low = model(rows, {"w": w}, {"x": ["n", 16]}, ["y"])
    ConvertFloats(ir.DataType.BFLOAT16)(low)
    assert has_bfloat16(low)
    WidenBfloat16()(low)
    x = normal(4, 16, seed=1)
    found = Session(low, SessionSettings(optimize=False))({"x": x})["y"]
    h = rounded(rounded(x) @ rounded(w))
    np.testing.assert_allclose(found, rounded(h * h), rtol=2**-7)
    np.testing.assert_array_equal(found, rounded(found))


def test_models_without_it_stay_as_they_are():
    plain = model([("Relu", ["x"], "y", {})], {}, {"x": ["n", 4]}, ["y"])
    assert not has_bfloat16(plain)
    assert not WidenBfloat16()(plain).modified
