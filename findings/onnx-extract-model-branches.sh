#!/usr/bin/env bash
# onnx.utils.extract_model forgets what the branches of an If read.
#
# Versions: onnx==1.23.2, onnxruntime==1.31.1, numpy==2.4.6
# One would guess: extracting a model between its own inputs and outputs gives the same model
#   back.
# What happens: nodes and initializers that only the bodies of an If read are left out, because
#   only the inputs of nodes are followed. extract_model() then raises from its own check;
#   onnx.utils.Extractor, without that check, returns the broken model without a word.
# Why it matters: cutting models in parts is how tools profile layers, bisect errors and make
#   small test cases; with control flow, a valid model looks as if it had been broken all along.
#
# Output seen:
#   nodes before: ['Relu', 'Mul', 'If'] initializers: 1
#   nodes after:  ['If'] initializers: 0
#   extract_model raises: Nodes in a graph must be topologically sorted, however input 'b' of node:
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  onnx==1.23.2 onnxruntime==1.31.1 numpy==2.4.6
"$folder/venv/bin/python" - <<'EOF'
import tempfile

import onnx
from onnx import utils

model = onnx.parser.parse_model("""
<ir_version: 10, opset_import: ["": 21]>
g (float[4] x, bool c) => (float[4] y)
<float[4] w = {1, 2, 3, 4}>
{
  a = Relu(x)
  b = Mul(a, w)
  y = If<
    then_branch = first () => (float[4] p) { p = Add(b, w) },
    else_branch = second () => (float[4] q) { q = Neg(b) }
  >(c)
}
""")
model = onnx.shape_inference.infer_shapes(model)
onnx.checker.check_model(model, full_check=True)
parts = utils.Extractor(model).extract_model(["x", "c"], ["y"]).graph
before = [node.op_type for node in model.graph.node]
after = [node.op_type for node in parts.node]
print("nodes before:", before, "initializers:", len(model.graph.initializer))
print("nodes after: ", after, "initializers:", len(parts.initializer))
with tempfile.TemporaryDirectory() as folder:
    onnx.save(model, f"{folder}/whole.onnx")
    try:
        utils.extract_model(f"{folder}/whole.onnx", f"{folder}/part.onnx", ["x", "c"], ["y"])
        refused = "nothing"
    except onnx.checker.ValidationError as error:
        refused = str(error).splitlines()[0]
print("extract_model raises:", refused)
assert (before, after) == (["Relu", "Mul", "If"], ["If"])
assert len(parts.initializer) == 0
assert "topologically sorted" in refused
EOF
