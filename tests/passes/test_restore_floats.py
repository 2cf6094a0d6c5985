"""Quantized models of other tools, and lwqc's own, become float models with known formats."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnxruntime.quantization import CalibrationDataReader, quantize_static

from lwqc.backends.cpu import CpuTarget
from lwqc.compile.execute import execute
from lwqc.decide.compress import open_version
from lwqc.decide.lower import lower_plan
from lwqc.graph.sites import find_sites
from lwqc.model import io
from lwqc.passes.encoded_weights import EncodedWeights
from lwqc.passes.restore_floats import RestoreFloats, is_quantized
from lwqc.plans.goals import Goals
from lwqc.plans.plan import ActivationRange, Plan, SiteEntry, Source
from lwqc.runtime.session import Session, SessionSettings
from tests.build import model, normal
from tests.processor import EXACT, INTEGER

X = {"x": normal(6, 64, seed=3)}


def linear():
    rows = [("MatMul", ["x", "w"], "h", {}), ("Relu", ["h"], "y", {})]
    return model(rows, {"w": normal(64, 32, scale=0.2)}, {"x": ["n", 64]}, ["y"])


def quantized(entry):
    plan = Plan(
        source=Source(),
        quantize={"w": SiteEntry.model_validate(entry)},
        activations={"x": ActivationRange(low=-4, high=4)},
    )
    built = linear()
    return CpuTarget().lower(built, plan, EncodedWeights(built, io.read_array)).model


ENTRIES = [
    {"weight": "w4b32h"},
    {"weight": "w4b16ah"},
    {"weight": "w8b32"},
    {"weight": INTEGER, "activation": "dynamic"},
    {"weight": INTEGER, "activation": "static"},
    {"weight": "w8c"},
    {"weight": "w4c"},
]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: "-".join(e.values()))
def test_forms_of_the_cpu_are_recognised_and_come_back_the_same(entry):
    before = quantized(entry)
    work = open_version(before, data=[X])
    plan = lower_plan(work)
    assert [str(e.weight) for e in plan.quantize.values()] == [entry["weight"]]
    assert [e.activation for e in plan.quantize.values()] == [entry.get("activation", "none")]
    after = execute(work, Goals(), plan).model
    expected, found = Session(before)(X)["y"], Session(after)(X)["y"]
    # Static grids are cut from float32 ends of the range: a step may differ in its last digit.
    tolerance = 0.02 if entry.get("activation") == "static" else 1e-6
    np.testing.assert_allclose(found, expected, atol=tolerance * np.abs(expected).max())


def qdq(zero=0, dtype=np.int8, relu=False):
    """A product whose input, weight and output another tool wrapped in Q/DQ."""
    pair = [np.float32(0.03), dtype(zero)]
    rows = [
        ("QuantizeLinear", ["x", "xs", "xz"], "xq", {}),
        ("DequantizeLinear", ["xq", "xs", "xz"], "xd", {}),
        ("DequantizeLinear", ["wq", "ws"], "wd", {"axis": 1}),
        ("MatMul", ["xd", "wd"], "h", {}),
        ("QuantizeLinear", ["h", "hs", "hz"], "hq", {}),
        ("DequantizeLinear", ["hq", "hs", "hz"], "y", {}),
    ]
    rng = np.random.default_rng(0)
    weights = {
        "xs": pair[0],
        "xz": pair[1],
        "wq": rng.integers(-127, 128, (64, 32), np.int8),
        "ws": rng.uniform(0.001, 0.002, 32).astype(np.float32),
        "hs": np.float32(0.05),
        "hz": np.uint8(0) if relu else np.int8(0),
    }
    return model(rows, weights, {"x": ["n", 64]}, ["y"])


def test_pairs_of_another_tool_go_and_their_ranges_are_kept():
    built = qdq()
    step = RestoreFloats({})
    step(built)
    assert not is_quantized(built)
    assert [v.name for v in built.graph.outputs] == ["y"]
    assert step.ranges["x"].high == pytest.approx(127 * 0.03)
    assert step.ranges["x"].low == pytest.approx(-128 * 0.03)
    codes = qdq().graph.initializers["wq"].const_value.numpy()
    scales = qdq().graph.initializers["ws"].const_value.numpy()
    stored = built.graph.initializers["wq/float"].const_value.numpy()
    np.testing.assert_array_equal(stored, codes.astype(np.float32) * scales)


def test_a_relu_that_the_quantizer_left_out_comes_back():
    before = qdq(relu=True)
    work = open_version(before, data=[X])
    plan = lower_plan(work)
    assert plan.restore.clips == {"h": "relu"}
    found = Session(execute(work, Goals(), plan).model)(X)["y"]
    assert found.min() == 0
    expected = Session(before, SessionSettings(optimize=False))(X)["y"]
    assert np.abs(found - expected).max() < 0.06  # half a step of the output, and of the input


class Reader(CalibrationDataReader):
    """Noise for onnxruntime's quantizer."""

    def __init__(self):
        self.feeds = iter([{"x": normal(2, 16, 8, 8, seed=i)} for i in range(3)])

    def get_next(self):
        return next(self.feeds, None)


@pytest.mark.parametrize("target", ["cpu", "cuda", "tensorrt"])
def test_models_of_onnxruntimes_quantizer(tmp_path, target):
    """It leaves out the Relu, gives u8 codes with zero points, and quantizes outputs and biases."""
    rows = [
        ("Conv", ["x", "w", "b"], "a", {"pads": [1] * 4}),
        ("Relu", ["a"], "r", {}),
        ("Conv", ["r", "v"], "c", {"pads": [1] * 4}),
        ("Add", ["c", "r"], "y", {}),
    ]
    weights = {
        "w": normal(32, 16, 3, 3, scale=0.1),
        "b": normal(32, seed=2),
        "v": normal(32, 32, 3, 3, seed=1, scale=0.1),
    }
    floats = model(rows, weights, {"x": ["n", 16, 8, 8]}, ["y"], opset=17)
    io.save(floats, tmp_path / "float.onnx")
    path = tmp_path / "qdq.onnx"
    quantize_static(tmp_path / "float.onnx", path, Reader(), per_channel=True)
    feeds = {"x": normal(2, 16, 8, 8, seed=9)}
    work = open_version(str(path), data=[feeds], target=target)
    plan = lower_plan(work)
    assert "relu" in plan.restore.clips.values()
    expected = {"cpu": "static", "cuda": "none", "tensorrt": "static"}[target]
    assert {e.activation for e in plan.quantize.values()} == {expected}
    found = work.job.load(execute(work, Goals(), plan).model)(feeds)["y"]
    wanted = Session(floats)(feeds)["y"]
    # Codes of 8 bits get 7 where the processor sums no more: steps twice as large.
    least = 0.02 if target != "cpu" or EXACT else 0.04
    assert np.sqrt(np.mean((found - wanted) ** 2)) < least * wanted.std()


def test_codes_with_a_zero_point_are_encoded_again_for_tensorrt():
    work = open_version(qdq(zero=3, dtype=np.int8), data=[X], target="tensorrt")
    done = execute(work, Goals(), lower_plan(work))
    zeros = [
        n.inputs[2].const_value.numpy() for n in done.model.graph if n.op_type == "QuantizeLinear"
    ]
    assert zeros
    assert not any(z.any() for z in zeros)


def test_what_has_no_name_in_lwqc_is_told():
    built = qdq()
    node = next(n for n in built.graph if n.name == "n_wd")
    node.attributes["axis"] = ir.AttrInt64("axis", 0)
    built.graph.initializers["ws"].const_value = ir.tensor(
        np.full(64, 0.001, np.float32), name="ws"
    )
    built.graph.initializers["ws"].shape = ir.Shape([64])
    work = open_version(built, data=[X], target="cuda")
    plan = lower_plan(work)
    assert plan.quantize == {}
    assert "no name" in plan.kept_float["wq/float"]
    done = execute(work, Goals(), plan)
    onnx.checker.check_model(ir.serde.serialize_model(done.model), full_check=True)
    assert find_sites(done.model).sites


@pytest.mark.parametrize(("axis", "kept"), [(0, False), (3, True), (-1, True), (9, True)])
def test_scales_that_do_not_fit_their_codes_are_left(axis, kept):
    """onnxruntime makes one operator of pairs and convolution without a look at the axis."""
    rows = [
        ("DequantizeLinear", ["codes", "scale"], "w", {"axis": axis}),
        ("Conv", ["x", "w"], "y", {}),
    ]
    stored = {
        "codes": np.arange(32 * 4 * 9).reshape(32, 4, 3, 3).astype(np.int8),
        "scale": np.abs(normal(32)) + 1,
    }
    built = model(rows, stored, {"x": ["n", 4, 8, 8]}, ["y"])
    restore = RestoreFloats()
    restore(built)
    assert (
        restore.left == {"w": "DequantizeLinear: its scales or zero points do not fit its codes"}
    ) is kept
    assert ("DequantizeLinear" in {n.op_type for n in built.graph}) is kept
