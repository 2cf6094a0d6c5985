"""Operators that onnxruntime's providers for phones take.

CoreML: the list for ML Programs in `tools/mobile_helpers` of the package onnxruntime 1.31.1.
QNN: "Supported ONNX operators" of its page on onnxruntime.ai, as of 1.22.
"""

from __future__ import annotations

COREML = {
    "": frozenset(
        {
        "Add", "And", "ArgMax", "AveragePool", "Cast", "Ceil", "Clip", "Concat", "Conv",
        "ConvTranspose", "Cos", "DepthToSpace", "Div", "Elu", "Erf", "Exp", "GatherND", "Gelu",
        "Gemm", "GlobalAveragePool", "GlobalMaxPool", "GridSample", "GroupNormalization",
        "HardSigmoid", "Identity", "InstanceNormalization", "LayerNormalization", "LeakyRelu",
        "MatMul", "Max", "MaxPool", "Mul", "PRelu", "Pow", "Reciprocal", "ReduceMax", "ReduceMean",
        "ReduceSum", "Relu", "Reshape", "Resize", "Round", "Shape", "Sigmoid", "Sin", "Slice",
        "Softmax", "Softplus", "Split", "Sqrt", "Squeeze", "Sub", "Tanh", "Tile", "Transpose",
        "Unsqueeze", "Where",
        }
    ),
    "com.microsoft": frozenset({"FusedConv", "QuickGelu"}),
}  # fmt: skip
QNN = {
    "": frozenset(
        {
        "Abs", "Add", "And", "ArgMax", "ArgMin", "Asin", "Atan", "AveragePool",
        "BatchNormalization", "Cast", "Clip", "Concat", "Constant", "Conv", "ConvTranspose", "Cos",
        "DepthToSpace", "DequantizeLinear", "Div", "Elu", "Equal", "Exp", "Expand", "Flatten",
        "Floor", "Gather", "Gelu", "Gemm", "GlobalAveragePool", "Greater", "GreaterOrEqual",
        "GridSample", "HardSwish", "Identity", "InstanceNormalization", "LRN",
        "LayerNormalization", "LeakyRelu", "Less", "LessOrEqual", "Log", "LogSoftmax",
        "LpNormalization", "MatMul", "Max", "MaxPool", "Min", "Mul", "Neg", "Not", "Or", "PRelu",
        "Pad", "Pow", "QuantizeLinear", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd",
        "ReduceSum", "Relu", "Reshape", "Resize", "Round", "Sigmoid", "Sign", "Sin", "Slice",
        "Softmax", "SpaceToDepth", "Split", "Sqrt", "Squeeze", "Sub", "Tanh", "Tile", "TopK",
        "Transpose", "Unsqueeze", "Where",
        }
    ),
    "com.microsoft": frozenset({"DequantizeLinear", "Gelu", "QuantizeLinear"}),
}  # fmt: skip
