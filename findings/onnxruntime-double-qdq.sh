#!/usr/bin/env bash
# onnxruntime removes the coarser of two quantizations in a row.
#
# Versions: onnx==1.23.2, onnxruntime==1.31.1, numpy==2.4.6
# One would guess: quantizing with step 1 and then with step 0.1 leaves at most the values that
#   step 1 has: optimization levels change speed, and results by rounding at most.
# What happens: from the level 'basic' on, two pairs of QuantizeLinear and DequantizeLinear
#   become one with the range that both share, spread over all 256 codes. 0.4, which the first
#   pair rounds to 0, comes out as 0.4; in the other order 20 comes out as 12.7 instead of 13.
# Why it matters: a model that two tools quantized one after the other, or whose input arrives
#   quantized, is more precise in the runtime than the file says, so a loss measured there is
#   not the loss on a device that computes what is written. Compare with optimizations off.
#
# Output seen:
#   one, then tenth
#     reference:   0.0 1.0 1.0 12.7
#     level off:   0.0 1.0 1.0 12.7
#     level basic: 0.4 0.6 1.3 12.7
#   tenth, then one
#     reference:   0.0 1.0 1.0 13.0
#     level off:   0.0 1.0 1.0 13.0
#     level basic: 0.4 0.6 1.3 12.7
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
from onnx.reference import ReferenceEvaluator

LEVELS = ort.GraphOptimizationLevel
x = np.array([0.4, 0.6, 1.3, 20], np.float32)


def run(model, level):
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    file = model.SerializeToString()
    session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def text(y):
    return " ".join(f"{value:.1f}" for value in y)


seen = []
for first, second in (("one", "tenth"), ("tenth", "one")):
    model = onnx.parser.parse_model(f"""
    <ir_version: 10, opset_import: ["": 21]>
    g (float[4] x) => (float[4] y)
    <float one = {{1}}, float tenth = {{0.1}}, int8 zero = {{0}}>
    {{
      a = QuantizeLinear(x, {first}, zero)
      b = DequantizeLinear(a, {first}, zero)
      c = QuantizeLinear(b, {second}, zero)
      y = DequantizeLinear(c, {second}, zero)
    }}
    """)
    onnx.checker.check_model(model, full_check=True)
    print(f"{first}, then {second}")
    reference = text(ReferenceEvaluator(model).run(None, {"x": x})[0])
    off = text(run(model, LEVELS.ORT_DISABLE_ALL))
    basic = text(run(model, LEVELS.ORT_ENABLE_BASIC))
    print("  reference:  ", reference)
    print("  level off:  ", off)
    print("  level basic:", basic)
    assert reference == off
    seen.append(basic)
assert seen == ["0.4 0.6 1.3 12.7"] * 2
EOF
