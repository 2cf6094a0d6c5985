"""Sizes reach arithmetic on data without a copy; other uses of sizes stay as they are."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from lwqc.passes.sizes_on_device import SizesOnDevice
from lwqc.runtime.session import Session
from tests.build import model

INT64 = onnx.TensorProto.INT64


def built(index):
    rows = [
        ("Shape", ["past"], "shape", {}),
        ("Gather", ["shape", "i"], "length", {}),
        ("Add", ["positions", "length"], "y", {}),
    ]
    return model(
        rows,
        {"i": np.array(index, np.int64)},
        {"past": ["b", "p"], "positions": ["s"]},
        ["y"],
        types={"positions": INT64, "y": INT64},
    )


@pytest.mark.parametrize("index", [1, [1]], ids=["scalar", "vector"])
def test_a_size_is_read_through_range(index):
    before, after = built(index), built(index)
    assert SizesOnDevice()(after).modified
    onnx.checker.check_model(ir.serde.serialize_model(after), full_check=True)
    add = next(n for n in after.graph if n.name == "n_y")
    source = add.inputs[1].producer()
    assert "Range" in {source.op_type, source.inputs[0].producer().op_type}
    feeds = {"past": np.zeros((2, 7), np.float32), "positions": np.arange(3)}
    np.testing.assert_array_equal(Session(after)(feeds)["y"], Session(before)(feeds)["y"])


def test_sizes_that_only_make_shapes_are_left_alone():
    rows = [
        ("Shape", ["x"], "shape", {}),
        ("Add", ["shape", "one"], "larger", {}),
        ("Expand", ["value", "larger"], "y", {}),
    ]
    weights = {"one": np.array([1, 1], np.int64), "value": np.ones((1, 1), np.float32)}
    plain = model(rows, weights, {"x": ["a", "b"]}, ["y"])
    assert not SizesOnDevice()(plain).modified
