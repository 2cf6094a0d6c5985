"""onnxsim, which quantizes too."""

import sys

import numpy as np
import onnx
import onnxsim

task, model, data, output = sys.argv[1:]
loaded, _ = onnxsim.simplify(model)
if task == "language":
    made = onnxsim.quantize_weight_only_int4(loaded)
else:
    arrays = np.load(data)
    name = arrays.files[0]
    made = onnxsim.quantize_static(loaded, [{name: row[None]} for row in arrays[name]])
onnx.save(made, output)
