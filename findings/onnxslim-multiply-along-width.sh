#!/usr/bin/env bash
# onnxslim takes a factor along the width of a convolution's output for one per channel.
#
# Versions: onnx==1.23.2, onnxruntime==1.31.1, numpy==2.4.6, onnxslim==0.1.98, sympy==1.14.0
# One would guess: a Mul by three numbers after a convolution with three channels and width
#   three broadcasts along the last axis, as everywhere in ONNX; only a factor of shape (3, 1,
#   1) is one per channel and can go into the weights.
# What happens: slim() multiplies the weights by whichever factor has as many elements as there
#   are channels, so that the outputs change without a warning. For Add the shape is looked at
#   and the node is kept.
# Why it matters: position masks, windows and separable filters are such factors, and where
#   height or width equals the number of channels the file still loads, passes the checker and
#   returns wrong numbers.
#
# Output seen:
#   Mul by (3, 1, 1): ['Conv'] same
#   Mul by (3): ['Conv'] differs
#   first row of each channel, as written: [[1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [1.0, 2.0, 3.0]]
#   first row of each channel, slimmed:    [[1.0, 1.0, 1.0], [2.0, 2.0, 2.0], [3.0, 3.0, 3.0]]
#   Add by (3): ['Conv', 'Add'] same
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  onnx==1.23.2 onnxruntime==1.31.1 numpy==2.4.6 onnxslim==0.1.98 sympy==1.14.0
"$folder/venv/bin/python" - <<'EOF'
import numpy as np
import onnx
import onnxruntime as ort
import onnxslim


def run(graph):
    session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": np.ones((1, 3, 2, 3), np.float32)})[0][0, :, 0]


for op, shape in (("Mul", "3, 1, 1"), ("Mul", "3"), ("Add", "3")):
    model = onnx.parser.parse_model(f"""
    <ir_version: 10, opset_import: ["": 21]>
    g (float[1, 3, 2, 3] x) => (float[1, 3, 2, 3] y)
    <float[3, 3, 1, 1] w = {{1, 0, 0, 0, 1, 0, 0, 0, 1}}, float[{shape}] b = {{1, 2, 3}}>
    {{
      a = Conv(x, w)
      y = {op}(a, b)
    }}
    """)
    onnx.checker.check_model(model, full_check=True)
    slim = onnxslim.slim(model)
    onnx.checker.check_model(slim, full_check=True)
    same = np.array_equal(run(model), run(slim))
    print(f"{op} by ({shape}):", [n.op_type for n in slim.graph.node], "same" if same else "differs")
    if not same:
        print("first row of each channel, as written:", run(model).tolist())
        print("first row of each channel, slimmed:   ", run(slim).tolist())
    assert same == (shape != "3" or op == "Add")
EOF
