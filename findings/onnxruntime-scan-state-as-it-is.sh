#!/usr/bin/env bash
# A Scan whose body returns a state as it got it: onnxruntime loses that state after the first step.
#
# Versions: onnxruntime==1.31.1, onnx==1.22.0, numpy==2.4.6
# One would guess: a body may list one of its inputs among its outputs, as any graph may, and the state is then the
#   same in every step. The checker accepts it, the reference evaluator computes it, and Loop does the same.
# What happens: the first step sees the state, all others see zeros, and its last value is zero. Nothing is raised or
#   logged, at any level of optimization. With an Identity between the body's input and output the result is right.
# Why it matters: loops of frameworks that see only their own variables carry weights and constants through every
#   step; an exporter or optimizer that removes the Identity, as it may for the standard, changes the numbers.
#
# Output seen:
#   by way of Identity: reference [8.0, 44.0], onnxruntime [8.0, 44.0], its state at the end [1.0, 10.0]
#   as it is: reference [8.0, 44.0], onnxruntime [5.0, 14.0], its state at the end [0.0, 0.0]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  onnxruntime==1.31.1 onnx==1.22.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'EOF'
import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

FEEDS = {
    "total": np.zeros(2, np.float32),
    "step": np.array([1, 10], np.float32),
    "rows": np.ones((4, 2), np.float32),
}


def floats(name, *shape):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def scan(by_identity):
    """Four times: the total grows by a row and by a step, which stays."""
    nodes = [
        helper.make_node("Add", ["t", "s"], ["more"]),
        helper.make_node("Add", ["more", "row"], ["t_next"]),
        helper.make_node("Identity", ["t_next"], ["seen"]),
    ]
    if by_identity:
        nodes.append(helper.make_node("Identity", ["s"], ["s_next"]))
    returned = "s_next" if by_identity else "s"
    body = helper.make_graph(
        nodes, "body", [floats(n, 2) for n in ("t", "s", "row")], [floats(n, 2) for n in ("t_next", returned, "seen")]
    )
    made = ["last_total", "last_step", "all"]
    node = helper.make_node("Scan", ["total", "step", "rows"], made, body=body, num_scan_inputs=1)
    given = [floats("total", 2), floats("step", 2), floats("rows", 4, 2)]
    graph = helper.make_graph([node], "g", given, [floats(made[0], 2), floats(made[1], 2), floats(made[2], 4, 2)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return model


found = {}
for words, by_identity in (("by way of Identity", True), ("as it is", False)):
    model = scan(by_identity)
    right = ReferenceEvaluator(model).run(None, FEEDS)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    total, state, _ = session.run(None, FEEDS)
    found[by_identity] = total.tolist(), state.tolist()
    print(f"{words}: reference {right[0].tolist()}, onnxruntime {total.tolist()}, its state at the end {state.tolist()}")
    assert right[0].tolist() == [8, 44] and right[1].tolist() == [1, 10]
assert found[True] == ([8, 44], [1, 10])
assert found[False] == ([5, 14], [0, 0]), "this has changed"
EOF
