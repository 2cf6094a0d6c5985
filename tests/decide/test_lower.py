"""`lwqc lower` and its neighbours, as a user meets them."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from lwqc import lower
from lwqc.backends import device_bench, devices
from lwqc.backends.tensorrt import TensorrtTarget
from lwqc.errors import InputError
from lwqc.model import io
from tests.build import model, normal

MODELS = Path(__file__).parents[2] / "models"
HERE = not devices.provider_problem("CUDAExecutionProvider")


@pytest.fixture
def linear(tmp_path):
    path = tmp_path / "linear.onnx"
    rows = [("MatMul", ["x", "w"], "h", {}), ("Softmax", ["h"], "y", {})]
    io.save(model(rows, {"w": normal(64, 64)}, {"x": ["batch", 64]}, ["y"]), path)
    return path


@pytest.mark.parametrize("target", ["cpu", "cuda", "tensorrt"])
def test_a_float_model_is_lowered_and_measured(run, linear, tmp_path, target):
    out = tmp_path / "out.onnx"
    code, shown, err = run("lower", linear, "-o", out, "--target", target, "--details")
    assert code == 0, err
    assert "drop: asked 0.01" in " ".join(shown.split())
    stored = {t.data_type for t in onnx.load(out).graph.initializer}
    half = target != "cpu"
    assert (onnx.TensorProto.FLOAT16 in stored) == half
    if half and not HERE:
        assert "speed not measured" in shown


def test_plans_are_written_and_replayed(run, linear, tmp_path):
    plan, first, second = (tmp_path / n for n in ("plan.json", "a.onnx", "b.onnx"))
    made = run("lower", linear, "-o", first, "--target", "cuda", "--plan-out", plan)
    assert made[0] == 0
    assert run("apply", linear, plan, "-o", second)[0] == 0
    assert first.read_bytes() == second.read_bytes()


def test_a_conversion_that_costs_too_much_exits_3(run, linear, tmp_path):
    out = tmp_path / "out.onnx"
    code, _, err = run("lower", linear, "-o", out, "--target", "cuda", "--max-drop", 0)
    assert code == 3
    assert "drop: asked 0" in err
    assert out.exists()


@pytest.mark.parametrize("target", ["cuda", "tensorrt"])
def test_inputs_and_outputs_of_16_bits_are_measured_on_the_same_data(run, linear, tmp_path, target):
    out = tmp_path / "out.onnx"
    asked = ["--floats", "float16", "--half-boundary", "--json"]
    code, text, _ = run("lower", linear, "-o", out, "--target", target, *asked)
    graph = onnx.load(out).graph
    types = {v.type.tensor_type.elem_type for v in (*graph.input, *graph.output)}
    assert (code, types) == (0, {onnx.TensorProto.FLOAT16})
    assert json.loads(text)["drop"] < 1e-4


REFUSED = [
    (["--target", "rocm"], "cpu-arm, cuda, openvino, coreml, qnn, tensorrt"),
    (
        ["--target", "cuda", "--floats", "float12"],
        "expected one of float32, float16, bfloat16",
    ),
    (["--target", "cpu", "--floats", "float16"], "computes in float32; it has no fast kernels"),
    (["--target", "tensorrt", "--profile", "batch=8"], "expected name=least:usual:largest"),
    (["--target", "tensorrt", "--profile", "batch=8:4:1"], "nor fall"),
    (["--target", "tensorrt", "--profile", "time=1:2:3"], "dynamic dimensions are batch"),
    (["--target", "cuda", "--engines", "e.onnx"], "target cuda builds none"),
    (["--target", "cpu", "--half-boundary"], "together with the model"),
]


@pytest.mark.parametrize(("options", "reason"), REFUSED, ids=[" ".join(o) for o, _ in REFUSED])
def test_wrong_options_are_told_in_a_line(run, linear, tmp_path, options, reason):
    out = tmp_path / "out.onnx"
    code, _, err = run("lower", linear, "-o", out, *options)
    assert code == 2
    assert reason in err
    assert len(err.strip().splitlines()) == 1
    assert not out.exists()


def test_an_opset_that_tensorrt_does_not_read(run, tmp_path):
    path = tmp_path / "new.onnx"
    io.save(model([("Relu", ["x"], "y", {})], {}, {"x": ["n", 4]}, ["y"], opset=23), path)
    code, _, err = run("lower", path, "-o", tmp_path / "out.onnx", "--target", "tensorrt")
    assert code == 2
    assert "opsets 9 to 22, the model has 23" in err


def test_a_node_that_cuda_cannot_run(run, tmp_path):
    path, out = tmp_path / "m.onnx", tmp_path / "out.onnx"
    rows = [
        ("DynamicQuantizeLinear", ["x"], "q", {}),
        ("Cast", ["q"], "f", {"to": 1}),
        ("Relu", ["f"], "y", {}),
    ]
    proto = io.to_bytes(model(rows, {}, {"x": ["n", 4]}, ["y"]))
    built = onnx.load_from_string(proto)
    built.graph.node[0].output.extend(["scale", "zero"])
    onnx.save(built, path)
    code, _, err = run("lower", path, "-o", out, "--target", "cuda")
    assert code == 2
    assert "DynamicQuantizeLinear" in err
    code, shown, err = run("lower", path, "-o", out, "--target", "cuda", "--allow-fallback")
    assert code == 0, err
    assert "CUDA has no kernel of DynamicQuantizeLinear" in " ".join(shown.split())


@pytest.mark.skipif(HERE, reason="this machine has the device")
def test_the_device_is_missing(run, linear, tmp_path):
    out = tmp_path / "out.onnx"
    for arguments in (
        ["bench", linear, "--target", "cuda"],
        ["compress", linear, "-o", out, "--target", "cuda", "--max-latency", "5ms"],
        ["lower", linear, "-o", out, "--target", "tensorrt", "--engines", tmp_path / "e.onnx"],
    ):
        code, _, err = run(*arguments)
        assert code == 2
        assert "ExecutionProvider" in err
    assert run("bench", linear, "--nhwc")[0] == 2


@pytest.mark.parametrize("fails", [False, True])
def test_engines_appear_with_the_model_or_nothing_does(run, linear, tmp_path, monkeypatch, fails):
    def compiled(path, output, settings):
        Path(output).write_bytes(b"engines")
        Path(output).with_name("e_0.engine").write_bytes(b"engine")
        assert settings.provider_options["trt_engine_cache_path"] == "out.engines"
        assert not out.exists()
        assert Path(path).exists()
        if fails:
            raise InputError("engines cannot be built: no")

    out, plan, engines = (tmp_path / n for n in ("out.onnx", "p.json", "e.onnx"))
    monkeypatch.setattr(TensorrtTarget, "unmeasured", lambda self: "")
    monkeypatch.setattr(device_bench, "compile_model", compiled)
    before = sorted(tmp_path.iterdir())
    code, _, err = run("lower", linear, "-o", out, "--target", "tensorrt", "--engines", engines,
                       "--plan-out", plan, "--no-verify")  # fmt: skip
    if fails:
        assert (code, len(err.strip().splitlines())) == (2, 1)
        assert sorted(tmp_path.iterdir()) == before
    else:
        assert code == 0, err
        assert all(file.exists() for file in (out, plan, engines, tmp_path / "e_0.engine"))


def test_the_python_api_lowers_too(linear, tmp_path):
    done = lower(linear, target="cuda", floats="bfloat16", data=[{"x": normal(4, 64)}])
    assert done.plan.floats.dtype == "bfloat16"
    report = done.save(tmp_path / "out.onnx")
    assert report.met
    assert np.isfinite(report.drop)
