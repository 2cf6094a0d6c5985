#!/usr/bin/env bash
# onnxscript's optimizer folds a BatchNormalization that is in training mode.
#
# Versions: onnx==1.23.2, onnxruntime==1.31.1, numpy==2.4.6, onnxscript==0.7.2, onnx-ir==1.1.0
# One would guess: with training_mode=1 the operator normalizes with the statistics of the batch
#   at hand, so there is nothing constant to fold and optimize() leaves the node alone.
# What happens: optimize() merges it into the convolution in front with the stored mean and
#   variance, as if it were in inference mode. Neither the attribute nor the outputs are looked
#   at.
# Why it matters: models that normalize with batch statistics on purpose (style transfer,
#   test-time adaptation, or exported in training mode by mistake) come back with other outputs
#   and without a warning; a compressor that calls the optimizer first measures its losses
#   against the wrong model.
#
# Output seen:
#   as written: mean 0.00, deviation 1.00
#   optimized:  mean 1.48, deviation 0.70 ['Conv']
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  onnx==1.23.2 onnxruntime==1.31.1 numpy==2.4.6 onnxscript==0.7.2 onnx-ir==1.1.0
"$folder/venv/bin/python" - <<'EOF'
import numpy as np
import onnx
import onnxruntime as ort
from onnxscript import optimizer

model = onnx.parser.parse_model("""
<ir_version: 10, opset_import: ["": 21]>
g (float[3, 1, 2, 2] x) => (float[3, 1, 2, 2] y)
<float[1, 1, 1, 1] w = {2}, float[1] scale = {1}, float[1] bias = {0},
 float[1] mean = {3}, float[1] var = {4}>
{
  a = Conv(x, w)
  y, new_mean, new_var = BatchNormalization<training_mode = 1>(a, scale, bias, mean, var)
}
""")
onnx.checker.check_model(model, full_check=True)
x = np.random.default_rng(0).normal(size=(3, 1, 2, 2)).astype(np.float32)


def moments(graph):
    session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    y = session.run(None, {"x": x})[0]
    return f"mean {abs(y.mean()):.2f}, deviation {y.std():.2f}"


optimized = optimizer.optimize(model)
before, after = moments(model), moments(optimized)
print("as written:", before)
print("optimized: ", after, [node.op_type for node in optimized.graph.node])
assert before == "mean 0.00, deviation 1.00"
assert after != before
assert [node.op_type for node in optimized.graph.node] == ["Conv"]
EOF
