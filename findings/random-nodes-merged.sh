#!/usr/bin/env bash
# onnxsim and onnxslim merge two random operators into one.
#
# Versions: onnx==1.23.2, onnxruntime==1.31.1, numpy==2.4.6, onnxsim==0.8.1, onnxslim==0.1.98,
#   sympy==1.14.0
# One would guess: two RandomNormalLike nodes without a seed draw independently, so common
#   subexpression elimination leaves them alone, as the optimizer of the runtime and that of
#   onnxscript do.
# What happens: both tools see two nodes with the same inputs and attributes and keep one. The
#   difference of the two draws, which varies in the original, is exactly zero everywhere.
# Why it matters: samplers of diffusion and text-to-speech models, and variational decoders,
#   draw noise more than once from tensors of the same shape: the file runs, but its noise is
#   correlated. Tools that compare outputs cannot tell, because they have to expect other random
#   numbers anyway.
#
# Output seen:
#   as written deviation 1.4 ['RandomNormalLike', 'RandomNormalLike', 'Sub']
#   onnxsim    deviation 0.0 ['RandomNormalLike', 'Sub']
#   onnxslim   deviation 0.0 ['RandomNormalLike', 'Sub']
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  onnx==1.23.2 onnxruntime==1.31.1 numpy==2.4.6 onnxsim==0.8.1 onnxslim==0.1.98 sympy==1.14.0
"$folder/venv/bin/python" - <<'EOF'
import numpy as np
import onnx
import onnxruntime as ort
import onnxsim
import onnxslim

model = onnx.parser.parse_model("""
<ir_version: 10, opset_import: ["": 21]>
g (float[1000] x) => (float[1000] y)
{
  a = RandomNormalLike(x)
  b = RandomNormalLike(x)
  y = Sub(a, b)
}
""")
onnx.checker.check_model(model, full_check=True)


def look(name, graph):
    session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    y = session.run(None, {"x": np.zeros(1000, np.float32)})[0]
    print(f"{name:10} deviation {y.std():.1f}", [node.op_type for node in graph.graph.node])
    return float(y.std())


assert 1.2 < look("as written", model) < 1.6
assert look("onnxsim", onnxsim.simplify(model)[0]) == 0
assert look("onnxslim", onnxslim.slim(model)) == 0
EOF
