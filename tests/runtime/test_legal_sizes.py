"""Sizes that nobody gave are found by trying, and strides do not stop an analysis."""

import numpy as np
import onnx_ir as ir
import pytest

import lwqc
from lwqc.compile.prunable import Prunable
from lwqc.errors import InputError
from lwqc.runtime.legal_sizes import legal_sizes
from tests.build import normal

SKIP = """<ir_version: 8, opset_import: ["" : 17]>
g (float[batch, 3, height, width] x) => (float[batch, 8, a, b] y) {
    stem = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (x, w1)
    low2 = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (stem, w2)
    low3 = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (low2, w3)
    low4 = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (low3, w4)
    low5 = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (low4, w5)
    up = Resize <mode = "nearest"> (low5, , sixteen)
    both = Concat <axis = 1> (stem, up)
    y = Conv <pads = [1, 1, 1, 1]> (both, w6)
}"""
WEIGHTS = {
    "w1": (16, 3, 3, 3),
    **{f"w{i}": (16, 16, 3, 3) for i in range(2, 6)},
    "w6": (8, 32, 3, 3),
}


def stored(text: str, weights: dict[str, np.ndarray]) -> ir.Model:
    """The model with values that no node makes as initializers."""
    model = ir.from_onnx_text(text)
    for node in model.graph:
        for index, value in enumerate(node.inputs):
            if value is not None and value.name in weights:
                if value.name not in model.graph.initializers:
                    array = weights[value.name]
                    new = ir.Value(name=value.name, const_value=ir.tensor(array, name=value.name))
                    new.shape, new.type = (
                        ir.Shape(array.shape),
                        ir.TensorType(new.const_value.dtype),
                    )
                    model.graph.register_initializer(new)
                node.replace_input_with(index, model.graph.initializers[value.name])
    return model


def skipping() -> ir.Model:
    arrays = {name: 0.1 * normal(*shape) for name, shape in WEIGHTS.items()}
    return stored(SKIP, arrays | {"sixteen": np.array([1, 1, 16, 16], np.float32)})


def windows(length: int) -> ir.Model:
    """A model of sound that is cut into windows of one length only."""
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
    g (float[batch, samples] x, float[?, {length}] state) => (float[rows, 4] y) {{
        both = Concat <axis = 0> (x, state)
        y = MatMul(both, w)
    }}"""
    return stored(text, {"w": normal(length, 4)})


def test_sizes_that_run_are_found():
    found = legal_sizes(skipping(), {})
    assert found == {"batch": 1, "height": 224, "width": 224}


def test_what_is_given_stays():
    assert legal_sizes(skipping(), {"height": 64}) == {"batch": 1, "height": 64, "width": 224}
    assert legal_sizes(skipping(), {"height": 64, "width": 32, "batch": 3})["batch"] == 3


def test_a_size_that_only_one_value_fits():
    assert legal_sizes(windows(288), {})["samples"] == 288


def test_sizes_that_run_at_once_are_the_usual_ones():
    found = legal_sizes(windows(16), {})
    assert (found["batch"], found["samples"]) == (1, 16)


def test_what_is_not_found_is_asked_for(monkeypatch):
    monkeypatch.setattr("lwqc.runtime.legal_sizes._SECONDS", 1.0)
    with pytest.raises(InputError, match="no sizes of batch, samples, state:0 were found"):
        legal_sizes(windows(1777), {})


def test_the_report_says_which_sizes_were_found(tmp_path):
    report = lwqc.quantize(skipping()).save(tmp_path / "o.onnx")
    assert report.data == "random with batch=1, height=224, width=224"


def test_channels_behind_a_skip_between_strides_are_prunable():
    groups = Prunable(skipping()).groups
    assert sum(g.size for g in groups) == 80
    assert not [b for b in groups.barriers if "not known" in b.reason]
