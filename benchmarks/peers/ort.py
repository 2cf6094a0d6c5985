"""onnxruntime's own tools."""

import sys

import numpy as np

task, model, data, output = sys.argv[1:]
if task in ("detector", "classifier"):
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        """Samples one by one."""

        def __init__(self) -> None:
            arrays = np.load(data)
            name = arrays.files[0]
            self.rows = iter([{name: row[None]} for row in arrays[name]])

        def get_next(self):
            """The next one."""
            return next(self.rows, None)

    quant_pre_process(model, "clean.onnx")
    quantize_static("clean.onnx", output, Reader(), QuantFormat.QDQ, per_channel=True)
if task == "language":
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(onnx.load(model), bits=4, block_size=32, is_symmetric=True)
    quantizer.process()
    quantizer.model.save_model_to_file(output)
