#!/usr/bin/env bash
# On the CPU, two of six spellings of GELU become the fast operator, though it is there for all.
#
# Versions: onnxruntime==1.31.1, onnx==1.22.0, numpy==2.4.6 (Linux x86-64, the CPU package)
# One would guess: the optimizer knows GELU, as its list of fusions says, and writes the operator
#   however an exporter spelled it; or where it does not, there is no kernel.
# What happens: x * (1 + erf(x / c)) / 2 becomes Gelu, in both orders. The same with the inverse of c
#   as a factor, as Keras models come out of tf2onnx, stays five operators; all forms with a
#   hyperbolic tangent (GPT-2, JAX) stay eight or more, for Pow and for products. Kernels of Gelu for
#   both are there, in the operator set 20 and, as Gelu and FastGelu, in the runtime's own.
# Why it matters: the function stands behind the widest layer of a transformer, and single operators
#   take one and a half to two and a half times as long; and of two exports of one network, one is
#   fast.
#
# Output seen (times of an AMD EPYC, one thread, 512 x 1024):
#   erf, divided by the root        Gelu
#   erf, divided, half first        Gelu
#   erf, times the inverse          Mul Erf Add Mul Mul, 0.57 ms, as Gelu 0.38 ms
#   erf, inverse, half first        Mul Erf Add Mul Mul, 0.61 ms, as Gelu 0.38 ms
#   tanh, with a power              Pow Mul Add Mul Tanh Add Mul Mul, 0.77 ms, as Gelu 0.30 ms
#   tanh, with products             Mul Mul Mul Add Mul Tanh Add Mul Mul, 0.76 ms, as Gelu 0.31 ms
#   two of six are recognised, and the others compute the same: True
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  onnxruntime==1.31.1 onnx==1.22.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'EOF'
import time

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

ort.set_default_logger_severity(4)
NUMBERS = {
    "root": 2**0.5, "inverse": 0.5**0.5, "one": 1, "half": 0.5, "three": 3, "k": 0.044715,
    "width": (2 / np.pi) ** 0.5,
}
PHI = ["Erf u -> e", "Add e one -> p"]
LAST, FIRST = ["Mul x p -> z", "Mul z half -> y"], ["Mul x half -> z", "Mul z p -> y"]
INNER = ["Add x cubed -> s", "Mul s width -> u", "Tanh u -> e", "Add e one -> p"]
SPELLINGS = {
    "erf, divided by the root": ["Div x root -> u", *PHI, *LAST],
    "erf, divided, half first": ["Div x root -> u", *PHI, *FIRST],
    "erf, times the inverse": ["Mul x inverse -> u", *PHI, *LAST],
    "erf, inverse, half first": ["Mul x inverse -> u", *PHI, *FIRST],
    "tanh, with a power": ["Pow x three -> c", "Mul c k -> cubed", *INNER, *LAST],
    "tanh, with products": [
        "Mul x k -> c", "Mul x c -> d", "Mul x d -> cubed", *INNER, *FIRST,
    ],
}  # fmt: skip


def built(nodes, stored):
    """A model whose x is computed, so that nothing is special about it."""
    first = helper.make_node("Neg", ["input"], ["x"])
    graph = helper.make_graph(
        [first, *nodes],
        "g",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 1024])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.float32(NUMBERS[name]), name) for name in sorted(stored)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def spelled(lines):
    nodes, stored = [], set()
    for line in lines:
        left, output = line.split(" -> ")
        op_type, *operands = left.split()
        stored |= set(operands) & set(NUMBERS)
        nodes.append(helper.make_node(op_type, operands, [output]))
    return built(nodes, stored)


def loaded(model):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.optimized_model_filepath = "optimized.onnx"
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session, [node.op_type for node in onnx.load("optimized.onnx").graph.node][1:]


def run(session, x):
    seconds = []
    for _ in range(15):
        start = time.perf_counter()
        (y,) = session.run(None, {"input": x})
        seconds.append(time.perf_counter() - start)
    return min(seconds) * 1e3, y


x = np.random.default_rng(0).standard_normal((512, 1024)).astype(np.float32)
recognised, same = 0, True
for name, lines in SPELLINGS.items():
    session, operators = loaded(spelled(lines))
    text = f"{name:<32}{' '.join(operators)}"
    if operators == ["Gelu"]:
        recognised += 1
    else:
        kind = "tanh" if "tanh" in name else "none"
        whole, _ = loaded(built([helper.make_node("Gelu", ["x"], ["y"], approximate=kind)], set()))
        (slow, one), (fast, other) = run(session, x), run(whole, x)
        text += f", {slow:.2f} ms, as Gelu {fast:.2f} ms"
        same &= bool(np.abs(one - other).max() < 1e-5)
    print(text)
print(f"two of six are recognised, and the others compute the same: {recognised == 2 and same}")
assert recognised == 2 and same, "this has changed"
EOF
