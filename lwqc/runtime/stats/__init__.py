"""Statistics of activations, computed while the model runs in ONNX Runtime."""
