#!/usr/bin/env bash
# Numbers kept outside of the model come too late for some of its tensors.
#
# Versions: onnxruntime==1.31.1, onnx==1.22.0, numpy==2.4.6 (Linux x86-64, the CPU package)
# One would guess: every tensor of a valid model may be kept in another file, and what is may be given
#   to the session instead, by SessionOptions.add_external_initializers.
# What happens: the session prepares the graph first. There it needs the sizes of a Split, and refuses
#   the model if they are in another file, which the plain checker accepts. It also removes tensors that
#   nothing reads; if values were given for one of those, it fails because it cannot find it, while
#   the same model loads from files.
# Why it matters: tools that keep everything above some size in another file break models with a Split
#   into many parts; those that share weights between sessions, models with a leftover weight.
#
# Output seen:
#   a weight that nothing reads: from a file True, given at load False
#     ... Failed to find existing initializer with name spare.
#   sizes of 40 parts: from a file False, given at load False
#     ... Cannot parse data from external tensors. Please load external data into raw data for tensor: sizes
#   a weight that is read: from a file True, given at load True
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  onnxruntime==1.31.1 onnx==1.22.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'EOF'
import numpy as np
import onnxruntime as ort
from onnx import TensorProto, checker, helper

ort.set_default_logger_severity(4)
PARTS = 40
STORED = {
    "weight": np.ones((PARTS, 8), np.float32),
    "spare": np.ones((PARTS, 8), np.float32),
    "sizes": np.ones(PARTS, np.int64),
}


def described(name):
    """A tensor whose numbers are in a file of its own."""
    array = STORED[name]
    array.tofile(name)
    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    tensor = TensorProto(name=name, data_type=kind, dims=array.shape)
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=name)
    return tensor


def built(*names):
    """y = x @ weight, or its last row where there are sizes to split it by."""
    nodes = [helper.make_node("MatMul", ["x", "weight"], ["y" if "sizes" not in names else "all"])]
    if "sizes" in names:
        parts = [f"p{i}" for i in range(PARTS - 1)] + ["y"]
        nodes.append(helper.make_node("Split", ["all", "sizes"], parts, axis=0))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [PARTS, PARTS])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 8])],
        [described(name) for name in names],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with open("model.onnx", "wb") as file:
        file.write(model.SerializeToString())
    checker.check_model("model.onnx")
    return names


def loads(label, names, given):
    options = ort.SessionOptions()
    if given:
        values = [ort.OrtValue.ortvalue_from_numpy(STORED[name]) for name in names]
        options.add_external_initializers(list(names), values)
    try:
        session = ort.InferenceSession("model.onnx", options, providers=["CPUExecutionProvider"])
        session.run(None, {"x": np.ones((PARTS, PARTS), np.float32)})
    except Exception as error:
        return False, f"  ... {str(error).split('Impl ')[-1].split('InferenceError] ')[-1]}"
    return True, ""


found = []
for label, names in (
    ("a weight that nothing reads", built("weight", "spare")),
    ("sizes of 40 parts", built("weight", "sizes")),
    ("a weight that is read", built("weight")),
):
    built(*names)
    (plain, _), (given, why) = loads(label, names, False), loads(label, names, True)
    print(f"{label}: from a file {plain}, given at load {given}")
    if why:
        print(why)
    found.append((plain, given))
assert found == [(True, False), (False, False), (True, True)], "this has changed"
EOF
