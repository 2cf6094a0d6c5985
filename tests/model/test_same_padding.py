"""SAME padding of dilated convolutions, which the runtime does not take, as numbers."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import lwqc
from tests.build import normal

SIZE = 11


def convolution(kernel, **attributes):
    weight = normal(4, 2, *kernel)
    node = helper.make_node("Conv", ["x", "w"], ["y"], **attributes)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, SIZE, SIZE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "w")],
    )
    opsets = [helper.make_opsetid("", 18)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize(
    ("kernel", "dilations"), [((3, 3), [2, 2]), ((3, 2), [1, 3]), ((2, 4), [3, 1])]
)
def test_it_computes_what_onnx_says(auto_pad, kernel, dilations, tmp_path):
    proto = convolution(kernel, auto_pad=auto_pad, dilations=dilations)
    x = normal(1, 2, SIZE, SIZE, seed=1)
    small = lwqc.compress(proto, data=[{"x": x}], recipe="clean")
    report = small.save(tmp_path / "o.onnx")
    assert any("SAME padding of dilated kernels" in note for note in report.notes)
    (pads,) = (a.ints for a in onnx.load(tmp_path / "o.onnx").graph.node[0].attribute
               if a.name == "pads")  # fmt: skip
    less = [(k - 1) * d // 2 for k, d in zip(kernel, dilations, strict=True)]
    rest = [(k - 1) * d - n for k, d, n in zip(kernel, dilations, less, strict=True)]
    assert list(pads) == (less + rest if auto_pad == "SAME_UPPER" else rest + less)
    explicit = convolution(kernel, pads=list(pads), dilations=dilations)
    (expected,) = ReferenceEvaluator(explicit).run(None, {"x": x})
    assert expected.shape == (1, 4, SIZE, SIZE)
    found = lwqc.verify(explicit, tmp_path / "o.onnx", data=[{"x": x}])
    assert found["y"].drop < 1e-6
    (told,) = ReferenceEvaluator(proto).run(None, {"x": x})
    np.testing.assert_allclose(told, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "attributes",
    [
        {"auto_pad": "SAME_UPPER"},
        {"auto_pad": "SAME_UPPER", "dilations": [1, 1], "strides": [2, 2]},
        {"auto_pad": "VALID", "dilations": [2, 2]},
        {"pads": [1, 1, 1, 1], "dilations": [2, 2]},
    ],
)
def test_what_the_runtime_takes_stays(attributes):
    proto = convolution((3, 3), **attributes)
    before = proto.graph.node[0].SerializeToString()
    from lwqc.model.normal_form import normalise

    assert normalise(proto) == []
    assert proto.graph.node[0].SerializeToString() == before


def test_what_stays_is_not_given_padding_that_forgets_the_dilation(tmp_path, run):
    """The runtime refuses it, and no optimizer makes something else of it."""
    onnx.save(convolution((3, 3), auto_pad="SAME_UPPER", dilations=[2, 2], strides=[2, 2]),
              tmp_path / "m.onnx")  # fmt: skip
    code, _, err = run("opt", tmp_path / "m.onnx", "-o", tmp_path / "o.onnx", "-p", "clean")
    assert code == 0, err
    (node,) = onnx.load(tmp_path / "o.onnx").graph.node
    kept = {a.name: a.s for a in node.attribute}
    assert kept["auto_pad"] == b"SAME_UPPER"
    assert "pads" not in kept
