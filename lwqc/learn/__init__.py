"""ONNX graphs as torch modules: gradients, and what is trained by them. Needs `lwqc[torch]`."""
