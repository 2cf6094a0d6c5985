"""Compile ONNX models to smaller and faster ones."""
