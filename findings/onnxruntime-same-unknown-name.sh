#!/usr/bin/env bash
# onnxruntime takes dimensions of one name for equal in one order of broadcasting only.
#
# Versions: onnx==1.23.2, onnxruntime==1.31.1, numpy==2.4.6
# One would guess: if all unknown sizes of a file carry the same name, say '?', either nothing
#   depends on the name, or inputs whose sizes differ are refused when they come in.
# What happens: inputs of 3 and 1 rows are accepted and broadcast, though their rows have one
#   name. 1 and 3 rows are accepted too, but the run fails inside: the memory plan writes the
#   sum over its first operand, which is too small. It does so with optimizations off as well.
# Why it matters: some exporters write one placeholder for every size they do not know. Such a
#   file passes the checker and every test with equal sizes; anything that reasons with names of
#   sizes (memory plans, cost models, joining of branches) has to distrust them.
#
# Output seen:
#   3 and 3 rows: (3, 4)
#   3 and 1 rows: (3, 4)
#   1 and 3 rows: Shape mismatch attempting to re-use buffer. {1,4} != {3,4}
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
from onnx import TensorProto, helper

ort.set_default_logger_severity(4)
x, z, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["?", 4]) for n in "xzy")
nodes = [
    helper.make_node("Relu", ["x"], ["a"]),
    helper.make_node("Exp", ["a"], ["b"]),
    helper.make_node("Add", ["b", "z"], ["c"]),
    helper.make_node("Exp", ["c"], ["y"]),
]
graph = helper.make_graph(nodes, "g", [x, z], [y])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
onnx.checker.check_model(model, full_check=True)
onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
options = ort.SessionOptions()
options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
file = model.SerializeToString()
session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def run(rows, others):
    feeds = {"x": np.zeros((rows, 4), np.float32), "z": np.zeros((others, 4), np.float32)}
    try:
        result = str(session.run(None, feeds)[0].shape)
    except Exception as error:
        text = str(error)
        result = text[text.index("Shape mismatch") :].split(". Validate")[0]
    print(f"{rows} and {others} rows: {result}")
    return result


assert run(3, 3) == "(3, 4)"
assert run(3, 1) == "(3, 4)"
assert run(1, 3) == "Shape mismatch attempting to re-use buffer. {1,4} != {3,4}"
EOF
