"""Models of other frameworks, from their source to a compressed file by two commands each.

    python -m benchmarks.frameworks keras mobilenet saved_model tflite     # where TensorFlow is
    python -m benchmarks.frameworks --list

prints a row for each: `lwqc convert SOURCE`, `lwqc compress MODEL --data`, how far what was saved
is from what the framework itself computes, and which passes undid what the exporter wrote.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests.frontends.make_files import MODELS as SMALL
from tests.frontends.make_files import Made

_SIDE = 96
_CODE = """
from pathlib import Path
from benchmarks.frameworks import MODELS

def source():
    return MODELS[{name!r}](Path("."))[0]
"""


def _pictures(count: int, *axes: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, *axes)).astype(np.float32)


def mobilenet(folder: Path) -> Made:
    """MobileNetV2 of Keras, without its trained weights."""
    os.environ["KERAS_BACKEND"] = "tensorflow"
    import keras

    keras.utils.set_random_seed(0)
    net = keras.applications.MobileNetV2((_SIDE, _SIDE, 3), weights=None, classes=100)
    net.save(folder / "net.keras")
    images = _pictures(8, _SIDE, _SIDE, 3)
    return folder / "net.keras", [images], [net.predict(images, verbose=0)]


def paddle_mobilenet(folder: Path) -> Made:
    """The same of PaddlePaddle."""
    import paddle

    paddle.seed(0)
    net = paddle.vision.models.mobilenet_v2(pretrained=False, num_classes=100)
    net.eval()
    spec = [paddle.static.InputSpec([None, 3, _SIDE, _SIDE], "float32", "x")]
    paddle.jit.save(net, str(folder / "paddle" / "net"), input_spec=spec)
    images = _pictures(8, 3, _SIDE, _SIDE)
    return folder / "paddle", [images], [net(paddle.to_tensor(images)).numpy()]


def _encoder() -> Any:
    import torch

    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(128, 4, 256, batch_first=True, activation="gelu")
    return torch.nn.Sequential(torch.nn.TransformerEncoder(layer, 2), torch.nn.Linear(128, 10))


def torch_export(folder: Path) -> Made:
    """A transformer as torch.export saves it."""
    import torch

    net, x = _encoder().eval(), torch.from_numpy(_pictures(8, 16, 128))
    torch.export.save(torch.export.export(net, (x,)), folder / "net.pt2")
    return folder / "net.pt2", [x.numpy()], [net(x).detach().numpy()]


def torch_module(folder: Path) -> Made:
    """The same as a module and its inputs."""
    import torch

    net, x = _encoder().eval(), torch.from_numpy(_pictures(8, 16, 128))
    return (net, (x,)), [x.numpy()], [net(x).detach().numpy()]


# Those of the tests, beside larger ones.
MODELS: Mapping[str, Callable[[Path], Made]] = {
    **{name: make for name, make in SMALL.items() if name != "paddle"},
    "mobilenet": mobilenet,
    "paddle_mobilenet": paddle_mobilenet,
    "torch_export": torch_export,
    "torch_module": torch_module,
}


def lwqc(*arguments: object, folder: Path) -> float:
    """Run a command; seconds."""
    begun = time.perf_counter()
    line = [sys.executable, "-m", "lwqc.cli", *map(str, arguments)]
    here = os.pathsep.join([str(Path.cwd()), str(folder), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        line, cwd=folder, env=os.environ | {"PYTHONPATH": here}, capture_output=True, text=True
    )
    if done.returncode not in (0, 3):
        raise SystemExit(f"{' '.join(line)}: {done.stderr[-800:]}")
    return time.perf_counter() - begun


def row(name: str, folder: Path) -> str:
    """A model's row."""
    import onnxruntime

    source, inputs, outputs = MODELS[name](folder)
    if isinstance(source, tuple):
        (folder / "own_model.py").write_text(_CODE.format(name=name))
        source = "own_model:source"
    trust = ["--trust-code"] if str(source).endswith((".pt2", ".pt")) else []
    seconds = lwqc("convert", source, "-o", "model.onnx", *trust, folder=folder)
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    feeds = {v.name: a for v, a in zip(session.get_inputs(), inputs, strict=True)}
    np.savez(folder / "data.npz", **feeds)
    spent = lwqc("compress", "model.onnx", "-o", "small.onnx", "--data", "data.npz", "--plan-out",
                 "plan.json", "--json", "--report", "small.html", folder=folder)  # fmt: skip
    small = onnxruntime.InferenceSession(folder / "small.onnx").run(None, feeds)
    before, after = ((folder / n).stat().st_size for n in ("model.onnx", "small.onnx"))
    times = [_milliseconds(folder / n, feeds) for n in ("model.onnx", "small.onnx")]
    plan = json.loads((folder / "plan.json").read_text())
    passes = ", ".join((plan.get("clean") or {"changes": []})["changes"]) or "nothing"
    worst = max(_distance(a, b) for a, b in zip(outputs, small, strict=True))
    return (
        f"| {name} | {seconds:.0f} + {spent:.0f} | {before / 1e3:.0f} | {after / 1e3:.0f} | "
        f"{times[0]:.3f} | {times[1]:.3f} | {worst:.4f} | {_same(outputs, small):.0%} | {passes} |"
    )


def _milliseconds(path: Path, feeds: Mapping[str, np.ndarray]) -> float:
    import onnxruntime

    session, times = onnxruntime.InferenceSession(path), []
    for _ in range(60):
        begun = time.perf_counter()
        session.run(None, dict(feeds))
        times.append(time.perf_counter() - begun)
    return float(np.median(times) * 1e3)


def _distance(expected: Any, value: Any) -> float:
    """Root mean square of the difference, over that of what is expected."""
    a, b = (np.asarray(x, np.float64).ravel() for x in (expected, value))
    return float(np.sqrt(((a - b) ** 2).mean() / max((a**2).mean(), 1e-30)))


def _same(expected: list[Any], value: list[Any]) -> float:
    """Share of the largest channels that are the same, of the last output."""
    a, b = np.asarray(expected[-1]), np.asarray(value[-1])
    return float((a.argmax(-1) == b.argmax(-1)).mean())


def main(names: list[str]) -> None:
    if names == ["--list"]:
        print(" ".join(MODELS))
        return
    print("| model | s | kB | kB | ms | ms | error | top-1 | passes of the clean-up |", flush=True)
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            print(row(name, Path(folder)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
