"""NNCF."""

import sys

import nncf
import numpy as np
import onnx

task, model, data, output = sys.argv[1:]
loaded = onnx.load(model)
if task == "language":
    made = nncf.compress_weights(loaded, mode=nncf.CompressWeightsMode.INT4_SYM, group_size=32)
else:
    arrays = np.load(data)
    name = arrays.files[0]
    samples = nncf.Dataset([{name: row[None]} for row in arrays[name]])
    kind = nncf.ModelType.TRANSFORMER if task == "classifier" else None
    made = nncf.quantize(loaded, samples, model_type=kind, subset_size=len(arrays[name]))
onnx.save(made, output)
