#!/usr/bin/env bash
# STFT is slow and inexact where the length of a frame is no power of two.
#
# Versions: onnxruntime==1.31.1, onnx==1.22.0, numpy==2.4.6 (Linux x86-64, the CPU package)
# One would guess: the operator for short-time Fourier transforms is the quickest and the most exact
#   way to compute them, and 400 numbers of a frame cost less than 512.
# What happens: frames of 256 or 512 numbers go through a fast transform. All others are summed up
#   number by number, with angles whose errors grow on the way: at 400 numbers, the 25 ms at 16 kHz
#   that speech models use, it takes about ten times as long as at 512, over twenty times as long as
#   a Conv with one filter for each frequency, and its largest error is tens of times that of either.
# Why it matters: exporters of speech front ends write STFT since it exists, and it then takes nearly
#   all of the time of the model; and a comparison of two such graphs finds differences of 1e-3 that
#   come from the operator alone.
#
# Output seen (times of an AMD EPYC, one thread):
#   512 numbers: STFT 1.67 ms, error 2.7e-05
#   400 numbers: STFT 15.88 ms, error 1.6e-03
#   400 numbers: Conv 0.63 ms, error 1.4e-05
#   slower by more than 5 and 10: True, ten times the error: True
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  onnxruntime==1.31.1 onnx==1.22.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'EOF'
import time

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

FRAMES, STEP = 200, 160


def built(op_type, inputs, shape, stored, **attributes):
    graph = helper.make_graph(
        [helper.make_node(op_type, inputs, ["y"], **attributes)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in stored.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def timed(model, feeds):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    providers = ["CPUExecutionProvider"]
    session = ort.InferenceSession(model.SerializeToString(), options, providers=providers)
    seconds = []
    for _ in range(9):
        start = time.perf_counter()
        (found,) = session.run(None, feeds)
        seconds.append(time.perf_counter() - start)
    return min(seconds), found


def compared(size, op_type):
    window = np.hanning(size)
    signal = np.random.default_rng(0).standard_normal(size + STEP * (FRAMES - 1))
    signal = signal.astype(np.float32)
    count = size // 2 + 1
    if op_type == "STFT":
        stored = {"step": np.array(STEP), "window": window.astype(np.float32)}
        model = built("STFT", ["x", "step", "window"], [1, None, 1], stored)
        seconds, found = timed(model, {"x": signal.reshape(1, -1, 1)})
        found = found[0, ..., 0] + 1j * found[0, ..., 1]
    else:
        turns = np.outer(np.arange(count), np.arange(size)) % size
        angles = 2 * np.pi * turns / size
        filters = np.concatenate([np.cos(angles) * window, -np.sin(angles) * window])
        stored = {"w": filters[:, None].astype(np.float32)}
        model = built("Conv", ["x", "w"], [1, 1, None], stored, strides=[STEP])
        seconds, found = timed(model, {"x": signal.reshape(1, 1, -1)})
        found = (found[0, :count] + 1j * found[0, count:]).T
    starts = range(0, STEP * FRAMES, STEP)
    wanted = np.fft.rfft(np.stack([signal[s : s + size] for s in starts]) * window)
    error = np.abs(found - wanted).max()
    print(f"{size} numbers: {op_type} {seconds * 1e3:.2f} ms, error {error:.1e}")
    return seconds, error


fast, slow, other = compared(512, "STFT"), compared(400, "STFT"), compared(400, "Conv")
slower = slow[0] > 5 * fast[0] and slow[0] > 10 * other[0]
worse = slow[1] > 10 * max(fast[1], other[1])
print(f"slower by more than 5 and 10: {slower}, ten times the error: {worse}")
assert slower and worse, "this has changed"
EOF
