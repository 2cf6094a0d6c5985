"""Commands on odd but valid models that mutants led to."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from lwqc.model import io
from lwqc.passes.cleanup import clean_up
from tests.build import model, normal
from tests.odd_files import CASES

NO_INPUTS = """<ir_version: 8, opset_import: ["": 17]>
net () => (float[4] y) {
    x = Constant<value_floats = [1.0, 2.0, 3.0, 4.0]>()
    y = RandomNormalLike<seed = 1.0>(x)
}"""


def test_blame_with_a_stored_tensor_as_an_output(run, tmp_path):
    path = tmp_path / "m.onnx"
    onnx.save(CASES["passed_through"](), path)
    code, _, error = run("verify", path, path, "--blame")
    assert (code, error) == (0, "")


@pytest.mark.parametrize("arguments", [["bench", "--seconds", "0.01"], ["inspect"]])
def test_a_model_without_inputs(run, tmp_path, arguments):
    path = tmp_path / "m.onnx"
    onnx.save(ir.to_proto(ir.from_onnx_text(NO_INPUTS)), path)
    code, text, error = run(arguments[0], path, *arguments[1:])
    assert (code, error) == (0, "")
    assert text


def test_libraries_do_not_talk_to_our_users(caplog):
    """A stored tensor that is an output too, which onnx_ir's pass says it leaves."""
    folded = clean_up(io.from_proto(CASES["passed_through"]()))
    assert folded.left == {}
    assert caplog.records == []


def test_numbers_that_overflow_are_told_in_one_line(run, tmp_path, recwarn):
    rows = [
        ("MatMul", ["x", "w"], "h", {}),
        ("Relu", ["h"], "r", {}),
        ("MatMul", ["r", "v"], "y", {}),
    ]
    weights = {"w": normal(64, 64) * np.float32(1e30), "v": normal(64, 16)}
    io.save(model(rows, weights, {"x": ["n", 64]}, ["y"]), tmp_path / "m.onnx")
    options = ["--score", "l2", "--compensate", "none"]
    code, _, error = run("prune", tmp_path / "m.onnx", "-o", tmp_path / "o.onnx", *options)
    assert code == 2
    assert error == "lwqc: a score is not finite; check the weights, the data and the loss\n"
    assert not [w for w in recwarn if w.category is RuntimeWarning]
