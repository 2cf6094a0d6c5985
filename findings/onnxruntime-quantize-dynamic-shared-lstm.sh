#!/usr/bin/env bash
# Two LSTM that share a weight: quantize_dynamic turns its codes twice, and both give noise.
#
# Versions: onnxruntime==1.31.1, onnx==1.22.0, numpy==2.4.6 (Linux x86-64, the CPU package)
# One would guess: a weight that two layers read is quantized once, and both read the codes.
# What happens: it is quantized once, but each LSTM reshapes and transposes the stored codes into the
#   order of DynamicQuantizeLSTM for itself, in place. The second one turns what the first has turned.
#   The file loads and runs, and nothing is said; also the first LSTM reads the scrambled codes. With a
#   copy of the weight for each the error is four orders of magnitude less. An input of another width
#   than 4 * hidden makes no difference, as the codes are reshaped by their count.
# Why it matters: one cell that is applied to two streams (siamese encoders, one cell for both
#   branches of a condition) is written so by exporters, and tools that join equal initializers make
#   such files of others.
#
# Output seen (squared error over the square of the float outputs):
#   a weight of its own for each: 0.0003, 0.0002
#   one weight for both: 2.3241, 2.2052
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  onnxruntime==1.31.1 onnx==1.22.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - 2>/dev/null <<'EOF'
import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import quantize_dynamic

HIDDEN, WIDTH = 16, 32
rng = np.random.default_rng(0)
WEIGHTS = {
    name: (rng.normal(size=(1, 4 * HIDDEN, size)) * 0.2).astype(np.float32)
    for name, size in (("w", WIDTH), ("r", HIDDEN), ("w2", WIDTH), ("r2", HIDDEN))
}
X = rng.normal(size=(5, 2, WIDTH)).astype(np.float32)


def errors(second):
    """Of both outputs after quantize_dynamic; second: the weight of the second LSTM."""
    nodes = [
        helper.make_node("LSTM", ["x", "w", "r"], ["a"], hidden_size=HIDDEN),
        helper.make_node("LSTM", ["x", second, "r2"], ["b"], hidden_size=HIDDEN),
    ]
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["s", "b", WIDTH])],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in "ab"],
        [numpy_helper.from_array(v, k) for k, v in WEIGHTS.items() if k in used],
    )
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), "float.onnx")
    quantize_dynamic("float.onnx", "int8.onnx")
    runs = [ort.InferenceSession(f"{n}.onnx").run(None, {"x": X}) for n in ("float", "int8")]
    return [float(((p - q) ** 2).mean() / (p**2).mean()) for p, q in zip(*runs)]


own, shared = errors("w2"), errors("w")
print("a weight of its own for each:", ", ".join(f"{e:.4f}" for e in own))
print("one weight for both:", ", ".join(f"{e:.4f}" for e in shared))
assert max(own) < 0.01, own
assert min(shared) > 0.5, shared
EOF
