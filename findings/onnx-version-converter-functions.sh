#!/usr/bin/env bash
# onnx's version converter drops the functions of a model and keeps the calls.
#
# Versions: onnx==1.23.2, onnxruntime==1.31.1, numpy==2.4.6
# One would guess: model-local functions are converted with the graph, or a model that has some
#   is refused.
# What happens: the converted model has no functions, but still the nodes that call them; this
#   happens even if the version asked for is the one the model has. The checker passes, because
#   it does not look into domains it does not know. The runtime refuses the file.
# Why it matters: exporters of recent years write modules as functions, and checking after the
#   conversion, as one should, does not help: the loss shows when the model is loaded, with a
#   message about an operator that is not registered. Inline the functions first.
#
# Output seen:
#   as written: 1 functions, checker passes, loads
#   opset 17: 0 functions, checker passes, refused: own:twice(-1) is not a registered function/op
#   opset 21: 0 functions, checker passes, refused: own:twice(-1) is not a registered function/op
#   inlined, opset 21: 0 functions, checker passes, loads
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  onnx==1.23.2 onnxruntime==1.31.1 numpy==2.4.6
"$folder/venv/bin/python" - <<'EOF'
import onnx
import onnxruntime as ort
from onnx import inliner, version_converter

model = onnx.parser.parse_model("""
<ir_version: 10, opset_import: ["": 17, "own": 1]>
g (float[4] x) => (float[4] y)
{
  y = own.twice(x)
}
<domain: "own", opset_import: ["": 17]>
twice (a) => (b)
{
  b = Add(a, a)
}
""")


def look(name, graph):
    onnx.checker.check_model(graph, full_check=True)
    try:
        ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
        loads = "loads"
    except Exception as error:
        loads = "refused:" + str(error).split("error:")[-1]
    print(f"{name}: {len(graph.functions)} functions, checker passes, {loads}")
    return len(graph.functions), loads


assert look("as written", model) == (1, "loads")
for version in (17, 21):
    functions, loads = look(f"opset {version}", version_converter.convert_version(model, version))
    assert functions == 0 and "not a registered function/op" in loads
inlined = inliner.inline_local_functions(model)
assert look("inlined, opset 21", version_converter.convert_version(inlined, 21)) == (0, "loads")
EOF
