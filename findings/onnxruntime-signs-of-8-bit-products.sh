#!/usr/bin/env bash
# With AMX the signs of the operands decide how long an 8 bit product takes: 1, 6 or 30 times.
#
# Versions: onnx==1.23.2, onnxruntime==1.31.1, numpy==2.4.6
# One would guess: MatMulInteger takes about the same time for uint8 and for int8 operands: all four
#   pairs are listed for it, and quantize_static takes int8 for both by default.
# What happens on x86-64 processors with AMX (flag amx_int8), one thread, 512 rows of 1024 times
#   1024 x 1024: only uint8 activations with int8 weights are multiplied in tiles, seven times as
#   fast as floats. With uint8 weights they are hardly faster than floats, and int8 activations
#   are four times slower than floats.
# Why it matters: for a choice that its accuracy does not notice, the same network in 8 bits is an
#   order of magnitude faster than float or several times slower. Other processors are not
#   looked at: there the script prints times and claims nothing.
#
# Output seen (Intel Xeon with amx_int8):
#   float: 7.6 ms
#   uint8 x int8: 1.1 ms
#   uint8 x uint8: 6.4 ms
#   int8 x int8: 32.2 ms
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  onnx==1.23.2 onnxruntime==1.31.1 numpy==2.4.6
"$folder/venv/bin/python" - <<'EOF'
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

ROWS, SIZE, TURNS = 512, 1024, 9
rng = np.random.default_rng(0)


def session(op, left, weight, result):
    graph = helper.make_graph(
        [helper.make_node(op, ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", left, ["rows", SIZE])],
        [helper.make_tensor_value_info("y", result, ["rows", SIZE])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


signed = rng.integers(-100, 100, (SIZE, SIZE)).astype(np.int8)
unsigned = (signed.astype(np.int16) + 128).astype(np.uint8)
x = rng.integers(0, 100, (ROWS, SIZE))
KINDS = {np.uint8: TensorProto.UINT8, np.int8: TensorProto.INT8}
cases = {
    "float": (
        session("MatMul", TensorProto.FLOAT, signed.astype(np.float32), TensorProto.FLOAT),
        x.astype(np.float32),
    )
}
for left, right in ((np.uint8, np.int8), (np.uint8, np.uint8), (np.int8, np.int8)):
    weight = signed if right is np.int8 else unsigned
    run = session("MatMulInteger", KINDS[left], weight, TensorProto.INT32)
    cases[f"{left.__name__} x {right.__name__}"] = run, x.astype(left)
times = {name: [] for name in cases}
for _ in range(TURNS):
    for name, (run, value) in cases.items():
        run.run(None, {"x": value})
        start = time.perf_counter()
        run.run(None, {"x": value})
        times[name].append(1e3 * (time.perf_counter() - start))
found = {name: float(np.median(own)) for name, own in times.items()}
for name, milliseconds in found.items():
    print(f"{name}: {milliseconds:.1f} ms")
flags = Path("/proc/cpuinfo")
if not flags.exists() or "amx_int8" not in flags.read_text().split():
    print("no AMX here: nothing is claimed")
    raise SystemExit
assert found["uint8 x int8"] < found["float"] / 3, found
assert found["uint8 x uint8"] > 3 * found["uint8 x int8"], found
assert found["int8 x int8"] > 2 * found["float"], found
EOF
