#!/usr/bin/env bash
# onnxruntime runs an Attention with a past only where it also gives the present away.
#
# Versions: onnx==1.23.2, onnxruntime==1.31.1, numpy==2.4.6
# One would guess: a model that reads keys and values of earlier tokens and has no use for the
#   longer ones, as the last step of a decoder or scoring with a fixed prefix, leaves out the
#   outputs present_key and present_value. ONNX calls each of them optional, the checker passes
#   with full inference, and the reference evaluator computes the result.
# What happens: the session is made without a word; the first run fails with "past_key provided
#   and present_key being null". Names for the two outputs that nothing reads make it run, with
#   the reference's numbers. Without a past nothing is needed.
# Why it matters: what removes outputs that nothing reads turns a model that runs into one that
#   does not, and neither the checker nor loading tells. Whoever cuts a decoder's cache out of its
#   outputs has to keep the names, or run the result once.
#
# Output seen:
#   outputs left out: reference 0.5870, checker passes, loads, run fails: True
#   outputs named:    reference 0.5870, runtime 0.5870
#   without a past:   reference 0.7480, runtime 0.7480
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
from onnx.reference import ReferenceEvaluator

ort.set_default_logger_severity(4)
rng = np.random.default_rng(0)
SHAPES = {"q": (1, 2, 8), "k": (1, 2, 8), "v": (1, 2, 8), "pk": (1, 2, 3, 4), "pv": (1, 2, 3, 4)}
FEEDS = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}


def made(outputs, past=", , pk, pv"):
    model = onnx.parser.parse_model(f"""
    <ir_version: 10, opset_import: ["": 23]>
    g (float[1,2,8] q, float[1,2,8] k, float[1,2,8] v, float[1,2,P,4] pk, float[1,2,P,4] pv)
      => (float[1,2,8] y)
    {{ {outputs} = Attention<q_num_heads: int = 2, kv_num_heads: int = 2>(q, k, v{past}) }}
    """)
    onnx.checker.check_model(model, full_check=True)
    return model


def reference(model):
    return float(np.abs(ReferenceEvaluator(model).run(None, FEEDS)[0]).mean())


def runtime(model):
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return float(np.abs(session.run(None, FEEDS)[0]).mean())


bare, named, alone = made("y"), made("y, present_key, present_value"), made("y", "")
try:
    runtime(bare)
    failed = False
except ort.capi.onnxruntime_pybind11_state.Fail as error:
    failed = "past_key provided and present_key being null" in str(error)
print(f"outputs left out: reference {reference(bare):.4f}, checker passes, loads, run fails: {failed}")
print(f"outputs named:    reference {reference(named):.4f}, runtime {runtime(named):.4f}")
print(f"without a past:   reference {reference(alone):.4f}, runtime {runtime(alone):.4f}")
assert failed
assert abs(reference(named) - runtime(named)) < 1e-5
assert abs(reference(alone) - runtime(alone)) < 1e-5
EOF
