#!/usr/bin/env bash
# A Gemm whose weight has a described shape, as torch exports it, cannot be quantized dynamically.
#
# Versions: onnxruntime==1.31.1, onnx==1.22.0, numpy==2.4.6 (Linux x86-64, the CPU package)
# One would guess: types and shapes that a model repeats for its stored tensors (value_info of an
#   initializer, which the checker and the runtime accept) change nothing for a quantizer.
# What happens: quantize_dynamic first makes a MatMul of each Gemm and transposes the stored weight, but
#   leaves the description with the sizes of before. The shape inference that it runs next stops:
#   "Inferred shape and existing shape differ". Without the description, and for a square weight, the
#   same model is quantized. What quant_pre_process makes of it works too, as it infers anew.
# Why it matters: torch.onnx.export (2.13) describes every parameter, and writes an nn.Linear on rows as
#   one Gemm with transB: a network of a single layer cannot be quantized as it was exported, and the
#   message names neither the layer nor the way out.
#
# Output seen:
#   without descriptions: quantized
#   with one for a square weight: quantized
#   with one: InferenceError
#   with one, after quant_pre_process: quantized
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  onnxruntime==1.31.1 onnx==1.22.0 numpy==2.4.6 sympy
cd "$folder"
"$folder/venv/bin/python" - 2>/dev/null <<'EOF'
import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import quantize_dynamic
from onnxruntime.quantization.shape_inference import quant_pre_process


def linear(name, outputs, described):
    """Rows of 16 numbers times a stored weight [outputs, 16]."""
    weight = np.random.default_rng(0).normal(size=(outputs, 16)).astype(np.float32)
    known = [helper.make_tensor_value_info("w", TensorProto.FLOAT, weight.shape)]
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", outputs])],
        [numpy_helper.from_array(weight, "w")],
        value_info=known if described else [],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, name)
    ort.InferenceSession(name)


def quantized(name):
    try:
        quantize_dynamic(name, "int8.onnx")
    except onnx.shape_inference.InferenceError as error:
        return type(error).__name__
    return "quantized"


linear("plain.onnx", 8, described=False)
linear("square.onnx", 16, described=True)
linear("described.onnx", 8, described=True)
quant_pre_process("described.onnx", "ready.onnx")
found = {
    "without descriptions": quantized("plain.onnx"),
    "with one for a square weight": quantized("square.onnx"),
    "with one": quantized("described.onnx"),
    "with one, after quant_pre_process": quantized("ready.onnx"),
}
for label, what in found.items():
    print(f"{label}: {what}")
assert list(found.values()) == ["quantized", "quantized", "InferenceError", "quantized"], found
EOF
