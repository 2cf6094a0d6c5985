#!/usr/bin/env bash
# onnxscript's optimizer joins two Clips into one that returns another constant.
#
# Versions: onnx==1.23.2, onnxruntime==1.31.1, numpy==2.4.6, onnxscript==0.7.2, onnx-ir==1.1.0
# One would guess: a Clip after a Clip becomes one Clip over the common range, and where the two
#   ranges have nothing in common the rule stays away or yields the constant that the second
#   Clip would.
# What happens: the bounds are intersected in any case. Clip to [-1, 0.5] and then to [0.7, 2]
#   is 0.7 everywhere; the joined Clip has its lower bound 0.7 above its upper bound 0.5, for
#   which ONNX defines the upper bound as the result: 0.5 everywhere.
# Why it matters: a value below the range of its last Clip leaves the graph, for example a
#   divisor or a logarithm that the second Clip was there to protect. The checker accepts both
#   graphs.
#
# Output seen:
#   reference: [0.7 0.7 0.7]
#   runtime:   [0.7 0.7 0.7]
#   optimized: [0.5 0.5 0.5] ['Clip']
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
from onnx.reference import ReferenceEvaluator
from onnxscript import optimizer, rewriter

model = onnx.parser.parse_model("""
<ir_version: 10, opset_import: ["": 21]>
g (float[3] x) => (float[3] y)
<float low = {-1.0}, float high = {0.5}, float low2 = {0.7}, float high2 = {2.0}>
{
  a = Clip(x, low, high)
  y = Clip(a, low2, high2)
}
""")
onnx.checker.check_model(model, full_check=True)
x = np.array([-3, 0, 3], np.float32)
joined = rewriter.rewrite(optimizer.optimize(model))
onnx.checker.check_model(joined, full_check=True)


def run(graph):
    session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


print("reference:", ReferenceEvaluator(model).run(None, {"x": x})[0])
print("runtime:  ", run(model))
print("optimized:", run(joined), [node.op_type for node in joined.graph.node])
assert (run(model) == np.float32(0.7)).all()
assert (run(joined) == np.float32(0.5)).all()
EOF
