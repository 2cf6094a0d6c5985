#!/usr/bin/env bash
# MatMulNBits with integer sums takes scales that the graph computes for zeros.
#
# Versions: onnx==1.23.2, onnxruntime==1.31.1, numpy==2.4.6
# One would guess: whether the scales of a quantized weight are stored in float32, or stored in
#   float16 and converted by a Cast in front, makes no difference: the operator's inputs need not be
#   constants.
# What happens: at `accuracy_level` 4 the CPU kernel packs stored codes when the session is built,
#   together with the scales if those are stored too. Scales that come from a node are not looked at
#   later: the product is zero, silently, at 2, 4 and 8 bits. At level 0 it is right. With graph
#   optimizations the Cast is folded and nothing shows; with them disabled it does.
# Why it matters: float16 scales halve what blocks cost in a file, and a file that was right in every
#   default session returns the bias alone to whoever disables optimizations, as one does when
#   looking for a fault, or to save time while loading.
#
# Output seen (largest difference to stored scales, over the largest result):
#   2 bits, level 0: 0.00   level 4: 1.00
#   4 bits, level 0: 0.00   level 4: 1.00
#   8 bits, level 0: 0.00   level 4: 1.00
#   4 bits, level 4, optimizations on: 0.00
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  onnx==1.23.2 onnxruntime==1.31.1 numpy==2.4.6
"$folder/venv/bin/python" - <<'EOF'
import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

ROWS, K, N, BLOCK = 8, 128, 64, 32
rng = np.random.default_rng(0)
x = rng.standard_normal((ROWS, K)).astype(np.float32)
scale = rng.uniform(0.01, 0.02, (N, K // BLOCK)).astype(np.float16)


def product(bits: int, level: int, cast: bool, optimize: bool) -> np.ndarray:
    codes = np.random.default_rng(bits).integers(
        0, 256, (N, K // BLOCK, BLOCK * bits // 8), dtype=np.uint8
    )
    stored = scale if cast else scale.astype(np.float32)
    nodes = [helper.make_node("Cast", ["s"], ["s32"], to=TensorProto.FLOAT)] if cast else []
    nodes.append(
        helper.make_node(
            "MatMulNBits", ["x", "q", "s32" if cast else "s"], ["y"], domain="com.microsoft",
            K=K, N=N, bits=bits, block_size=BLOCK, accuracy_level=level,
        )
    )
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [ROWS, K])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [ROWS, N])],
        [numpy_helper.from_array(codes, "q"), numpy_helper.from_array(stored, "s")],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = ort.SessionOptions()
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"x": x})[0]


def difference(bits: int, level: int, optimize: bool = False) -> float:
    expected, found = (product(bits, level, cast, optimize) for cast in (False, True))
    return float(np.abs(found - expected).max() / np.abs(expected).max())


for bits in (2, 4, 8):
    exact, integer = difference(bits, 0), difference(bits, 4)
    print(f"{bits} bits, level 0: {exact:.2f}   level 4: {integer:.2f}")
    assert exact < 1e-3 and abs(integer - 1) < 1e-6
folded = difference(4, 4, optimize=True)
print(f"4 bits, level 4, optimizations on: {folded:.2f}")
assert folded < 1e-3
EOF
