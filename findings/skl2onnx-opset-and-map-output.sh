#!/usr/bin/env bash
# skl2onnx chooses the opset by estimator, and onnx-ir cannot open its classifiers.
#
# Versions: skl2onnx==1.20.0, scikit-learn==1.9.1, scipy==1.17.1, onnx==1.23.2, onnx-ir==1.1.0,
#   numpy==2.4.6
# One would guess: to_onnx() without a target writes the newest opset that it supports, the same
#   for all estimators, and a valid ONNX file of it opens in any library for ONNX files.
# What happens: the opset is the lowest that the converted operators need: 9 for a linear
#   classifier, 14 for a neural network of two classes and 21 for one of three, all with one IR
#   version. The probabilities of a classifier come as a sequence of maps by default; the
#   checker passes, and onnx-ir raises, because it has no type for maps. With zipmap=False it
#   opens.
# Why it matters: tools that quantize or optimize have a lowest opset, so they work for one
#   estimator, or one number of classes, and not for the next, and those that are built on
#   onnx-ir (onnxscript's optimizer, torch's exporter) cannot open a default classifier at all.
#
# Output seen:
#   LogisticRegression, 2 classes, {}: IR 10, opset 9, sequence_type, onnx-ir raises
#   MLPClassifier, 2 classes, {}: IR 10, opset 14, sequence_type, onnx-ir raises
#   MLPClassifier, 3 classes, {}: IR 10, opset 21, sequence_type, onnx-ir raises
#   LogisticRegression, 2 classes, {'zipmap': False}: IR 10, opset 22, tensor_type, onnx-ir opens
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  skl2onnx==1.20.0 scikit-learn==1.9.1 scipy==1.17.1 onnx==1.23.2 onnx-ir==1.1.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'EOF'
import warnings

import numpy as np
import onnx
import onnx_ir as ir
from skl2onnx import to_onnx
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier

warnings.simplefilter("ignore")
rng = np.random.default_rng(0)
x = rng.normal(size=(60, 4)).astype(np.float32)
y = (x[:, 0] > 0).astype(int)


def look(estimator, **options):
    chosen = {id(estimator): options} if options else None
    model = to_onnx(estimator, x[:1], options=chosen)
    onnx.checker.check_model(model, full_check=True)
    opset = {entry.domain: entry.version for entry in model.opset_import}[""]
    kind = model.graph.output[1].type.WhichOneof("value")
    try:
        ir.from_proto(model)
        result = "opens"
    except ir.serde.SerdeError:
        result = "raises"
    name = f"{type(estimator).__name__}, {len(estimator.classes_)} classes"
    print(f"{name}, {options}: IR {model.ir_version}, opset {opset}, {kind}, onnx-ir {result}")
    return opset, result


linear = LogisticRegression().fit(x, y)
assert look(linear) == (9, "raises")
assert look(MLPClassifier((8,), max_iter=20).fit(x, y)) == (14, "raises")
assert look(MLPClassifier((8,), max_iter=20).fit(x, y + (x[:, 1] > 1))) == (21, "raises")
assert look(linear, zipmap=False)[1] == "opens"
EOF
