"""Bridges to other tools that edit ONNX models."""
