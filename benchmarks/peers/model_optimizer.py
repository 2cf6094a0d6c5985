"""NVIDIA's ModelOpt, whose files are meant for TensorRT."""

import sys

import numpy as np
from modelopt.onnx.quantization import quantize

task, model, data, output = sys.argv[1:]
arrays = dict(np.load(data))
mode = "int4" if task == "language" else "int8"
quantize(
    model, quantize_mode=mode, calibration_data=arrays, calibration_eps=["cpu"],
    high_precision_dtype="fp32", output_path=output,
)  # fmt: skip
