"""Operators that onnxruntime-web's WebGPU provider has kernels for.

From the list of WebGPU operators in the npm package onnxruntime-web 1.30.0.
"""

from __future__ import annotations

WEBGPU = {
    "": frozenset(
        {
        "Abs", "Acos", "Acosh", "Add", "ArgMax", "ArgMin", "Asin", "Asinh", "Atan", "Atanh",
        "AveragePool", "BatchNormalization", "Cast", "Ceil", "Clip", "Concat", "Conv",
        "ConvTranspose", "Cos", "Cosh", "CumSum", "DFT", "DepthToSpace", "DequantizeLinear", "Div",
        "Einsum", "Elu", "Equal", "Erf", "Exp", "Expand", "Flatten", "Floor", "Gather",
        "GatherElements", "GatherND", "Gelu", "Gemm", "GlobalAveragePool", "GlobalMaxPool",
        "Greater", "GreaterOrEqual", "GridSample", "HardSigmoid", "HardSwish", "If",
        "InstanceNormalization", "LayerNormalization", "LeakyRelu", "Less", "LessOrEqual", "Log",
        "MatMul", "MaxPool", "Mul", "Neg", "Not", "Pad", "Pow", "Range", "Reciprocal", "ReduceL1",
        "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin",
        "ReduceProd", "ReduceSum", "ReduceSumSquare", "Relu", "Reshape", "Resize", "ScatterND",
        "Shape", "Sigmoid", "SimplifiedLayerNormalization", "Sin", "Sinh", "Slice", "Softmax",
        "Split", "Sqrt", "Squeeze", "Sub", "Tan", "Tanh", "ThresholdedRelu", "Tile", "Transpose",
        "Unsqueeze", "Where",
        }
    ),
    "com.microsoft": frozenset(
        {
        "Attention", "BiasAdd", "BiasSplitGelu", "FastGelu", "FusedConv", "GatherBlockQuantized",
        "Gelu", "GroupQueryAttention", "MatMulNBits", "MultiHeadAttention", "QuickGelu",
        "RotaryEmbedding", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization",
        }
    ),
}  # fmt: skip


def on_gpu(domain: str, op_type: str) -> bool:
    """Whether an operator has a kernel on the GPU, for one of its types and versions at least."""
    return op_type in WEBGPU.get("" if domain == "ai.onnx" else domain, frozenset())
