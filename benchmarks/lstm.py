"""LSTM layers of random weights: float, onnxruntime's dynamic tool, and lwqc.

    python -m benchmarks.lstm

One thread, runs in turns, medians. Error: of the output, over its variance, on other inputs than
those of the calibration.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import onnxruntime as ort
from onnxruntime.quantization import quantize_dynamic

import lwqc
from benchmarks.door import processor
from tests.build import model, normal

# (inputs, hidden, steps, directions)
SIZES = ((128, 128, 1, 1), (128, 128, 32, 1), (256, 256, 100, 2), (512, 512, 32, 1))
_ROUNDS, _LEAST_S = 15, 0.05


def recurrent(size: int, hidden: int, directions: int):
    """One LSTM from `x` [steps, batch, size]."""
    weights = {
        "w": normal(directions, 4 * hidden, size, seed=1, scale=size**-0.5),
        "r": normal(directions, 4 * hidden, hidden, seed=2, scale=hidden**-0.5),
        "b": normal(directions, 8 * hidden, seed=3, scale=0.1),
    }
    way = "bidirectional" if directions == 2 else "forward"
    rows = [("LSTM", ["x", "w", "r", "b"], "y", {"hidden_size": hidden, "direction": way})]
    return model(rows, weights, {"x": ["steps", "batch", size]}, ["y"])


def session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def medians(paths: list[Path], feeds) -> list[float]:
    """Milliseconds of each."""
    sessions = [session(path) for path in paths]
    times: list[list[float]] = [[] for _ in paths]
    for _ in range(_ROUNDS):
        for one, known in zip(sessions, times, strict=True):
            one.run(None, feeds)
            runs, start = 0, time.perf_counter()
            while (passed := time.perf_counter() - start) < _LEAST_S:
                one.run(None, feeds)
                runs += 1
            known.append(1e3 * passed / max(runs, 1))
    return [statistics.median(known) for known in times]


def main() -> None:
    print(processor(), f"onnxruntime {ort.__version__}")
    print("| inputs, hidden, steps, directions | tool | kB | ms | x | error |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    for inputs, hidden, steps, directions in SIZES:
        net = recurrent(inputs, hidden, directions)
        data = [{"x": normal(steps, 1, inputs, seed=i)} for i in range(8)]
        other = [{"x": normal(steps, 1, inputs, seed=100 + i)} for i in range(8)]
        with tempfile.TemporaryDirectory() as folder:
            tools = ("float", "onnxruntime quantize_dynamic", "lwqc")
            paths = [Path(folder) / f"{i}.onnx" for i in range(len(tools))]
            lwqc.save(net, paths[0])
            quantize_dynamic(paths[0], paths[1], per_channel=True)
            lwqc.compress(paths[0], data=data).save(paths[2])
            times = medians(paths, data[0])
            for tool, path, ms in zip(tools, paths, times, strict=True):
                error = lwqc.verify(paths[0], path, data=other)["y"].error
                sizes = f"{inputs}, {hidden}, {steps}, {directions}"
                kilobytes = path.stat().st_size / 1e3
                print(
                    f"| {sizes} | {tool} | {kilobytes:.0f} | {ms:.3f} | {times[0] / ms:.2f} "
                    f"| {error:.4f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
