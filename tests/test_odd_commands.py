"""Commands on odd but valid models that mutants led to."""

from __future__ import annotations

import logging

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import lwqc
from lwqc.model import io
from lwqc.passes.cleanup import clean_up
from lwqc.runtime.session import Session
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
    told = (
        "lwqc: channel score l2 on group w:1: gave a number that is not finite; check the weights"
    )
    assert error == f"{told}, the data and the loss\n"
    assert not [w for w in recwarn if w.category is RuntimeWarning]


SIZES_GIVEN = """<ir_version: 10, opset_import: ["": 20]>
net (float[1, 4, 8, 8] x, int64[2] s) => (float[1, 8] y) <float[1, 1152] f> {
    h = Conv (x, w)
    r = Relu (h)
    f = Reshape (r, s)
    y = MatMul (f, v)
}"""


def test_sizes_that_callers_give_in_a_list_of_unknown_length():
    """How many there are is told by the rank of what a Reshape makes."""
    proto = onnx.parser.parse_model(SIZES_GIVEN)
    for name, array in {"w": normal(32, 4, 3, 3), "v": normal(32 * 36, 8)}.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    proto.graph.input[1].type.tensor_type.ClearField("shape")
    feeds = [{"x": normal(1, 4, 8, 8), "s": np.array([1, 32 * 36])}]
    done = lwqc.prune(ir.from_proto(proto), ratio=0.3, data=feeds, score="l2")
    assert done.plan.prune.units
    assert Session(done.model)(feeds[0])["y"].shape == (1, 8)


def test_what_libraries_log_is_not_told(run, tmp_path, monkeypatch):
    logger = logging.getLogger("onnx_ir")
    monkeypatch.setattr(logger, "level", logging.NOTSET)
    run("passes")
    assert not logger.isEnabledFor(logging.WARNING)
