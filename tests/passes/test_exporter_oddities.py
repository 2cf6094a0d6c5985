"""What exporters write otherwise than torch is in torch's form after the clean-up.

Of these onnxscript's optimizer does padding: a version that no longer does would show here.
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import lwqc
from lwqc.model import io
from lwqc.passes.cleanup import clean_up
from lwqc.passes.one_view import one_view
from lwqc.runtime.session import Session
from tests.build import model, normal

WEIGHT = normal(8, 3, 3, 3)
SIZE = {"x": [2, 3, 9, 8]}


def cleaned(rows, weights, inputs, x):
    """The one convolution after the clean-up, and what stands beside it; outputs stay."""
    given = model(rows, weights, inputs, ["y"])
    done = clean_up(given).model
    np.testing.assert_allclose(
        Session(done)({"x": x})["y"], Session(given)({"x": x})["y"], rtol=1e-5, atol=1e-5
    )
    (node,) = [n for n in done.graph if n.op_type == "Conv"]
    return node, [n.op_type for n in done.graph if n is not node]


def paddings(node):
    auto = node.attributes.get_string("auto_pad", "NOTSET")
    return auto, list(node.attributes.get_ints("pads", [0, 0, 0, 0]))


def test_pad_goes_into_the_convolution():
    amounts = np.array([0, 0, 1, 2, 0, 0, 3, 0])
    rows = [("Pad", ["x", "p"], "h", {}), ("Conv", ["h", "w"], "y", {"pads": [1, 1, 1, 1]})]
    x = normal(2, 3, 9, 8, seed=1)
    for inputs in (SIZE, {"x": ["n", 3, "h", "w"]}):
        node, others = cleaned(rows, {"p": amounts, "w": WEIGHT}, inputs, x)
        assert paddings(node) == ("NOTSET", [2, 3, 4, 1])
        assert others == []


@pytest.mark.parametrize(
    ("amounts", "options"),
    [
        (np.array([0, 1, 1, 1, 0, 0, 1, 1]), {}),  # channels
        (np.array([0, 0, 1, 1, 0, 0, 1, 1]), {"mode": "reflect"}),
        (np.array([0, 0, -1, 0, 0, 0, 0, 0]), {}),
    ],
    ids=["channels", "reflect", "crop"],
)
def test_other_pads_stay(amounts, options):
    channels = 3 + int(amounts[1])
    rows = [("Pad", ["x", "p"], "h", options), ("Conv", ["h", "w"], "y", {})]
    weight = normal(8, channels, 3, 3)
    _, others = cleaned(rows, {"p": amounts, "w": weight}, SIZE, normal(2, 3, 9, 8, seed=1))
    assert others == ["Pad"]


@pytest.mark.parametrize(
    ("auto", "strides", "pads"),
    [
        ("SAME_UPPER", [1, 1], [1, 1, 1, 1]),
        ("SAME_UPPER", [2, 2], [1, 0, 1, 1]),  # 9 -> 5 takes 2 more, 8 -> 4 takes 1 more
        ("SAME_LOWER", [2, 2], [1, 1, 1, 0]),
        ("VALID", [2, 2], [0, 0, 0, 0]),
    ],
)
def test_same_is_written_in_numbers_where_sizes_are_known(auto, strides, pads):
    x = normal(2, 3, 9, 8, seed=1)
    rows = [("Conv", ["x", "w"], "y", {"auto_pad": auto, "strides": strides})]
    node, others = cleaned(rows, {"w": WEIGHT}, SIZE, x)
    assert paddings(node) == ("NOTSET", pads)
    assert others == []


@pytest.mark.parametrize("strides", [[1, 1], [2, 2]])
def test_same_stays_where_sizes_vary_and_is_quantized_all_the_same(strides, tmp_path):
    x = normal(2, 3, 9, 8, seed=1)
    rows = [("Conv", ["x", "w"], "y", {"auto_pad": "SAME_UPPER", "strides": strides})]
    node, _ = cleaned(rows, {"w": normal(64, 3, 3, 3)}, {"x": ["n", 3, "h", "w"]}, x)
    assert paddings(node)[0] == "SAME_UPPER"
    given = model(rows, {"w": normal(64, 3, 3, 3)}, {"x": ["n", 3, "h", "w"]}, ["y"])
    done = lwqc.quantize(given, data=[{"x": x}], method="gptq")
    assert list(done.plan.quantize) == ["w"]
    assert done.save(tmp_path / "o.onnx").drop < 0.01


def test_a_product_that_counts_its_bias_nought_times_has_none():
    rows = [("Gemm", ["x", "w", "b"], "y", {"beta": 0.0})]
    given = model(rows, {"w": normal(40, 32), "b": normal(32)}, {"x": ["n", 40]}, ["y"])
    (node,) = one_view(given).graph
    assert len(node.inputs) == 2
    assert not node.attributes


def test_sizes_of_minus_one_have_no_name(tmp_path):
    """As Paddle2ONNX writes them: two of them need not be equal."""
    given = model([("MatMul", ["x", "w"], "y", {})], {"w": normal(40, 32)}, {"x": [1, 40]}, ["y"])
    proto = onnx.load_from_string(io.to_bytes(given))
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = -1
    del proto.graph.value_info[:]
    onnx.save(proto, tmp_path / "m.onnx")
    loaded = lwqc.load(tmp_path / "m.onnx")
    assert loaded.graph.inputs[0].shape[0].value is None
    report = lwqc.quantize(loaded, data=[{"x": normal(5, 40)}]).save(tmp_path / "o.onnx")
    assert report.drop < 0.01
