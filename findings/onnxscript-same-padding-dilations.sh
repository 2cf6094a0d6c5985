#!/usr/bin/env bash
# A dilated convolution with SAME padding: onnxscript's optimizer pads as if it were not dilated.
#
# Versions: onnxscript==0.7.2, onnx==1.22.0, numpy==2.4.6
# One would guess: SAME keeps the size of the picture, so an optimizer that writes the padding in numbers
#   counts how far a dilated kernel reaches: (3 - 1) * 2 = 4 for a kernel of 3 with steps of 2.
# What happens: rewrite() makes `pads` of `auto_pad` from the kernel's size alone, 2 in all, and keeps the
#   dilations. The output shrinks from 8 x 8 to 6 x 6, under a value that still declares 8 x 8. Nothing is
#   raised; only a strict shape inference of the result tells.
# Why it matters: SAME is how networks of TensorFlow's kind are written, and dilated convolutions are what
#   segmentation backbones are made of. onnxruntime refuses the original ("Dilation not supported for
#   AutoPadType"), so whoever optimizes such a file to make it run gets one that runs, and is wrong.
#
# Output seen:
#   as written: (1, 1, 8, 8)
#   rewritten, pads [1, 1, 1, 1]: (1, 1, 6, 6)
#   pads [2, 2, 2, 2]: (1, 1, 8, 8), equal to what was written: True
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  onnxscript==0.7.2 onnx==1.22.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'EOF'
import numpy as np
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnxscript import rewriter

rng = np.random.default_rng(0)
WEIGHT = rng.normal(size=(1, 1, 3, 3)).astype(np.float32)
X = rng.normal(size=(1, 1, 8, 8)).astype(np.float32)


def convolution(**padding):
    node = helper.make_node("Conv", ["x", "w"], ["y"], dilations=[2, 2], kernel_shape=[3, 3], **padding)
    sizes = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 1, 8, 8]) for n in "xy"]
    graph = helper.make_graph([node], "g", sizes[:1], sizes[1:], [numpy_helper.from_array(WEIGHT, "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def run(model):
    return ReferenceEvaluator(model).run(None, {"x": X})[0]


written = convolution(auto_pad="SAME_UPPER")
expected = run(written)
print(f"as written: {expected.shape}")
rewritten = ir.serde.serialize_model(rewriter.rewrite(ir.serde.deserialize_model(written)))
pads = next(list(a.ints) for a in rewritten.graph.node[0].attribute if a.name == "pads")
shrunk = run(rewritten)
print(f"rewritten, pads {pads}: {shrunk.shape}")
right = run(convolution(pads=[2, 2, 2, 2]))
same = bool(np.allclose(right, expected, atol=1e-5))
print(f"pads [2, 2, 2, 2]: {right.shape}, equal to what was written: {same}")
assert expected.shape == (1, 1, 8, 8) and same
assert shrunk.shape == (1, 1, 6, 6), "this has changed"
EOF
