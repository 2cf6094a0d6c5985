"""Which operators stay in float32, and why."""

import numpy as np
import onnx
import pytest

from lwqc.compile.execute import execute
from lwqc.compile.losses import full_drop
from lwqc.decide.compress import open_version
from lwqc.decide.float_plan import choose_floats
from lwqc.decide.lower import lower_plan
from lwqc.plans.goals import Goals
from tests.build import model, normal


def floats(built, feeds, dtype="float16", target="cuda"):
    return choose_floats(open_version(built, data=[feeds], target=target), dtype)


def chain(*rows, weights=None, outputs=("y",), opset=20):
    return model(rows, weights or {}, {"x": ["n", 64]}, list(outputs), opset=opset)


def test_what_overflows_on_the_data_is_kept_with_its_readers():
    weights = {"w": normal(64, 64), "big": np.float32(2000), "v": normal(64, 8)}
    built = chain(
        ("MatMul", ["x", "w"], "h", {}),
        ("Mul", ["h", "big"], "large", {}),
        ("Tanh", ["large"], "t", {}),
        ("MatMul", ["t", "v"], "y", {}),
        weights=weights,
    )
    found = floats(built, {"x": normal(8, 64, seed=2)})
    assert set(found.keep) == {"large", "t"}
    assert "float16 ends at" in found.keep["large"]
    assert floats(built, {"x": normal(8, 64, scale=0.01)}).keep == {}
    assert floats(built, {"x": normal(8, 64, seed=2)}, "bfloat16").keep == {}


def test_constants_that_would_vanish_are_kept():
    built = chain(
        ("ReduceL2", ["x"], "norm", {"keepdims": 1}),
        ("Max", ["norm", "eps"], "safe", {}),
        ("Div", ["x", "safe"], "y", {}),
        weights={"eps": np.float32(1e-12)},
    )
    found = floats(built, {"x": normal(4, 64)})
    assert "would become 0" in found.keep["safe"]
    assert "y" not in found.keep


def test_angles_and_what_leads_to_them_stay_in_float32():
    built = model(
        [
            ("Cast", ["p"], "f", {"to": onnx.TensorProto.FLOAT}),
            ("Mul", ["f", "rate"], "angle", {}),
            ("Cos", ["angle"], "c", {}),
            ("Mul", ["c", "two"], "y", {}),
        ],
        {"rate": normal(1, 8), "two": np.float32(2)},
        {"p": ["n", 1]},
        ["y"],
        types={"p": onnx.TensorProto.INT64},
    )
    found = floats(built, {"p": np.arange(6)[:, None]})
    assert set(found.keep) == {"c", "angle", "f"}


def test_whole_numbers_beyond_the_significand_stay_in_float32():
    built = model(
        [("Cast", ["p"], "f", {"to": onnx.TensorProto.FLOAT}), ("Add", ["f", "half"], "y", {})],
        {"half": np.float32(0.5)},
        {"p": ["n"]},
        ["y"],
        types={"p": onnx.TensorProto.INT64},
    )
    assert "whole numbers to 5000" in floats(built, {"p": np.array([5000])}).keep["f"]
    assert floats(built, {"p": np.array([20])}).keep == {}


def test_masks_are_clamped_where_the_outputs_agree():
    weights = {"mask": np.where(np.arange(64) < 32, 0, -3.4e38).astype(np.float32)}
    built = chain(("Add", ["x", "mask"], "s", {}), ("Softmax", ["s"], "y", {}), weights=weights)
    found = floats(built, {"x": normal(4, 64)})
    assert (found.clamp, found.keep) == (3e4, {})
    shown = chain(("Add", ["x", "mask"], "y", {}), weights=weights)
    kept = floats(shown, {"x": normal(4, 64)})
    assert kept.clamp is None
    assert "y" in kept.keep


def test_masks_that_come_as_inputs_are_clamped_too():
    built = model(
        [("Add", ["x", "mask"], "s", {}), ("Softmax", ["s"], "y", {})],
        {},
        {"x": ["n", 64], "mask": [1, 64]},
        ["y"],
    )
    mask = np.where(np.arange(64) < 32, 0, np.finfo(np.float32).min).astype(np.float32)[None]
    work = open_version(built, data=[{"x": normal(4, 64), "mask": mask}], target="cuda")
    plan = lower_plan(work)
    assert plan.floats.clamped == ("mask",)
    assert set(plan.floats.keep) == {"mask/clamped"}
    done = execute(work, Goals(), plan)
    assert full_drop(work, work.job.load(done.model)) < 1e-6


def test_operators_without_a_kernel_for_the_type_are_kept_on_cuda_only():
    weights = {"pads": np.array([0, 1, 0, 1])}
    built = chain(("Pad", ["x", "pads"], "h", {}), ("Relu", ["h"], "y", {}), weights=weights)
    feeds = {"x": normal(2, 64)}
    assert "no kernel of Pad" in floats(built, feeds, "bfloat16").keep["h"]
    assert floats(built, feeds).keep == {}
    assert floats(built, feeds, "bfloat16", "tensorrt").keep == {}


def test_operators_without_such_a_form_are_told():
    built = model(
        [("ConvTranspose", ["x", "w"], "h", {}), ("Relu", ["h"], "y", {})],
        {"w": normal(4, 8, 3, 3)},
        {"x": ["n", 4, 6, 6]},
        ["y"],
    )
    feeds = {"x": normal(1, 4, 6, 6)}
    assert floats(built, feeds, "bfloat16").keep == {"h": "ConvTranspose has no bfloat16 form"}
    assert floats(built, feeds).keep == {}


@pytest.mark.parametrize("target", ["cuda", "tensorrt"])
def test_an_overflowing_model_still_gives_finite_numbers(target):
    built = chain(
        ("MatMul", ["x", "w"], "h", {}),
        ("Mul", ["h", "h"], "square", {}),
        ("Mul", ["square", "square"], "fourth", {}),
        ("ReduceMean", ["fourth"], "m", {"keepdims": 1}),
        ("Sqrt", ["m"], "r", {}),
        ("Div", ["fourth", "r"], "y", {}),
        weights={"w": normal(64, 64)},
        opset=17,
    )
    work = open_version(built, data=[{"x": normal(4, 64, scale=3)}], target=target)
    done = execute(work, Goals(), lower_plan(work))
    session = work.job.load(done.model)
    assert np.isfinite(session(work.job.data.fit.first())["y"]).all()
    assert full_drop(work, session) < 1e-4


def test_a_filter_that_is_computed_of_its_positions_is_computed_in_float32():
    """Rounding the positions of a window is not rounding the window: resamplers write it so."""
    positions = np.arange(-40, 40, dtype=np.float32)
    built = model(
        [
            ("Mul", ["rows", "rate"], "phases", {}),
            ("Add", ["phases", "columns"], "t", {}),
            ("Mul", ["t", "t"], "squared", {}),
            ("Exp", ["squared"], "wide", {}),
            ("Reciprocal", ["wide"], "filter", {}),
            ("MatMul", ["x", "filter"], "h", {}),
            ("Mul", ["h", "v"], "y", {}),
        ],
        {
            "rows": positions.reshape(-1, 1),
            "columns": positions.reshape(1, -1) / 39.7,
            "rate": np.float32(1 / 40.3),
            "v": normal(80),
        },
        {"x": ["n", 80]},
        ["y"],
    )
    found = floats(built, {"x": normal(4, 80)})
    assert set(found.keep) == {"phases", "t", "squared", "wide", "filter"}
    assert "made of fewer stored numbers" in found.keep["t"]


def test_a_weight_as_large_as_what_makes_it_is_in_the_type():
    built = chain(
        ("Mul", ["w", "gain"], "weight", {}),
        ("MatMul", ["x", "weight"], "y", {}),
        weights={"w": normal(64, 64), "gain": np.float32(2)},
    )
    assert floats(built, {"x": normal(4, 64)}).keep == {}
