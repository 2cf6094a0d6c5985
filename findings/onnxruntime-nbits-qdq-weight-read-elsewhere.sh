#!/usr/bin/env bash
# onnxruntime's quantizer to 4 bits and its loader expect a weight to have one reader next to
# it.
#
# Versions: onnx==1.23.2, onnxruntime==1.31.1, numpy==2.4.6, onnx-ir==1.1.0
# One would guess: MatMulNBitsQuantizer in QDQ format writes standard operators
#   (DequantizeLinear of a 4 bit weight, then MatMul), so where a weight is read does not
#   matter.
# What happens: if two MatMul of one graph share a weight, the quantizer writes its tensors
#   twice under the same names, and neither the checker nor the runtime takes the file. If the
#   body of an If reads a weight of the graph around it, the file is valid, but the runtime
#   refuses it at the default level with 'Missing required weight', since fusing looks for it in
#   the body only; up to the level 'basic' it loads. The other format, QOperator, has neither
#   fault. (The module needs onnx-ir, which onnxruntime does not require.)
# Why it matters: tied weights and decoders exported as the two branches of an If are common,
#   and the choice of format, made for portability, decides whether there is a model at all. The
#   first is silent until the file is loaded.
#
# Output seen:
#   two readers, QOperator: valid; level basic loads; all loads
#   two readers, QDQ: invalid; level basic refused (Duplicate definition of name (w_DQ_Q4_output).); all refused (Duplicate definition of name (w_DQ_Q4_output).)
#   reader in a body, QOperator: valid; level basic loads; all loads
#   reader in a body, QDQ: valid; level basic loads; all refused (Missing required weight: w_DQ_Q4)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  onnx==1.23.2 onnxruntime==1.31.1 numpy==2.4.6 onnx-ir==1.1.0
"$folder/venv/bin/python" - <<'EOF'
import logging

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper
from onnxruntime.quantization import QuantFormat
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

logging.disable(logging.INFO)
LEVELS = ort.GraphOptimizationLevel
HEAD = '<ir_version: 10, opset_import: ["": 21]>'
TIED = HEAD + """
g (float[rows, 64] x) => (float[rows, 64] y)
{
  a = MatMul(x, w)
  b = Relu(a)
  y = MatMul(b, w)
}
"""
BODY = HEAD + """
g (float[rows, 64] x, bool c) => (float[rows, 64] y)
{
  y = If<
    then_branch = first () => (float[rows, 64] p) { p = MatMul(x, w) },
    else_branch = second () => (float[rows, 64] q) { q = Relu(x) }
  >(c)
}
"""
weight = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)


def quantized(text, form):
    model = onnx.parser.parse_model(text)
    model.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    onnx.checker.check_model(model, full_check=True)
    quantizer = MatMulNBitsQuantizer(model, block_size=32, is_symmetric=True, quant_format=form)
    quantizer.process()
    return quantizer.model.model


def check(model):
    try:
        onnx.checker.check_model(model, full_check=True)
    except onnx.checker.ValidationError:
        return "invalid"
    return "valid"


def load(model, level):
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    file = model.SerializeToString()
    try:
        ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        text = str(error).replace("ForMatMulNBits ", "Error: ").split("Error: ")[-1]
        return "refused (" + text.split(" for node")[0] + ")"
    return "loads"


seen = {}
for name, text in (("two readers", TIED), ("reader in a body", BODY)):
    for form in (QuantFormat.QOperator, QuantFormat.QDQ):
        model = quantized(text, form)
        basic, full = load(model, LEVELS.ORT_ENABLE_BASIC), load(model, LEVELS.ORT_ENABLE_ALL)
        print(f"{name}, {form}: {check(model)}; level basic {basic}; all {full}")
        seen[name, str(form)] = check(model), basic.split()[0], full.split()[0]
assert seen["two readers", "QOperator"] == ("valid", "loads", "loads")
assert seen["two readers", "QDQ"] == ("invalid", "refused", "refused")
assert seen["reader in a body", "QOperator"] == ("valid", "loads", "loads")
assert seen["reader in a body", "QDQ"] == ("valid", "loads", "refused")
EOF
