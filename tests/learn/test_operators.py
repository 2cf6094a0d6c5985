"""The torch function of each operator against onnxruntime."""

import re

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch", reason="needs the extra lwqc[torch]")

from lwqc.errors import InputError  # noqa: E402
from lwqc.learn.table import OPERATIONS  # noqa: E402
from lwqc.learn.to_torch import module_of  # noqa: E402
from lwqc.runtime.session import Session  # noqa: E402
from tests.learn.operators import built, drawn  # noqa: E402

X = "float[2,3,4] x -> float y:"
_UNARY = [
    "Abs", "Asinh", "Atan", "Ceil", "Cos", "Cosh", "Elu", "Erf", "Exp", "Floor", "Gelu",
    "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "LogSoftmax", "Mish", "Neg", "Relu",
    "Round", "Selu", "Sigmoid", "Sign", "Sin", "Sinh", "Softmax", "Softplus", "Softsign", "Tan",
    "Tanh", "ThresholdedRelu", "Celu", "Shrink", "Hardmax", "LpNormalization", "Reciprocal",
]  # fmt: skip
_TWO = ["Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "Mean"]
_REDUCE = ["L1", "L2", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare"]
_COMPARE = ["Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"]
I = "int64[2,3] x, int64[2,3] z -> int64 y:"  # noqa: E741

CASES = {
    **{name: f"{X} y = {name}(x)" for name in _UNARY},
    **{name: f"float[2,3,4] x, float[3,1] z -> float y: y = {name}(x, z)" for name in _TWO},
    **{
        f"Reduce{n}": f"{X} a = Constant<value = int64[2] {{0, -1}}>() y = Reduce{n}(x, a)"
        for n in _REDUCE
    },
    **{f"{n} of floats": f"float[2,3] x, float[3] z -> bool y: y = {n}(x, z)" for n in _COMPARE},
    **{n: f"bool[2,3] x, bool[3] z -> bool y: y = {n}(x, z)" for n in ("And", "Or", "Xor")},
    **{n: f"float[2,3] p -> float y: y = {n}(p)" for n in ("Log", "Sqrt", "ReduceLogSum")},
    "Not": "bool[2,3] x -> bool y: y = Not(x)",
    "Acos": "float[4] x -> float y: t = Tanh(x) y = Acos(t)",
    "Asin": "float[4] x -> float y: t = Tanh(x) y = Asin(t)",
    "Atanh": "float[4] x -> float y: t = Sin(x) y = Atanh(t)",
    "Acosh": "float[4] p -> float y: o = Constant<value_float = 1.0>() t = Add(p, o) y = Acosh(t)",
    "Pow": "float[2,3] p, float[3] z -> float y: y = Pow(p, z)",
    "Pow of a number": f"{X} t = Constant<value_float = 3.0>() y = Pow(x, t)",
    "Pow of integers": "int64[4] i -> int64 y: t = Constant<value_float = 2.0>() y = Pow(i, t)",
    "PRelu": "float[2,3,4] x, float[3,1] s -> float y: y = PRelu(x, s)",
    "Div of integers": f"{I} o = Constant<value = int64[1] {{7}}>() y = Div(x, o)",
    "Mod": f"{I} o = Constant<value = int64[1] {{7}}>() y = Mod(x, o)",
    "Mod of floats": "float[4] x, float[4] p -> float y: y = Mod<fmod = 1>(x, p)",
    "BitwiseAnd": "int32[4] x, int32[4] z -> int32 y: y = BitwiseAnd(x, z)",
    "BitwiseOr": "int32[4] x, int32[4] z -> int32 y: y = BitwiseOr(x, z)",
    "BitwiseXor": "int32[4] x, int32[4] z -> int32 y: y = BitwiseXor(x, z)",
    "BitwiseNot": "int32[4] x -> int32 y: y = BitwiseNot(x)",
    "Gelu by tanh": f'{X} y = Gelu<approximate = "tanh">(x)',
    "Clip": f"{X} l = Constant<value_float = -0.5>() h = Constant<value_float = 0.7>() "
    "y = Clip(x, l, h)",
    "Clip below": f"{X} h = Constant<value_float = 0.7>() y = Clip(x, , h)",
    "IsNaN": "float[4] x -> bool y: s = Sqrt(x) y = IsNaN(s)",
    "IsInf": "float[4] x -> bool y: z = Sub(x, x) s = Div(x, z) y = IsInf<detect_negative = 0>(s)",
    "Where": "bool[3,1] c, float[2,3,4] x, float[4] z -> float y: y = Where(c, x, z)",
    "Cast": "float[2,3] x -> int64 y: y = Cast<to = 7>(x)",
    "Cast to half": "float[2,3] x -> float16 y: y = Cast<to = 10>(x)",
    "CastLike": "float[2,3] x, int32[1] z -> int32 y: y = CastLike(x, z)",
    # shapes
    "Shape": "float[2,3,4] x -> int64 y: y = Shape<start = 1>(x)",
    "Size": "float[2,3,4] x -> int64 y: y = Size(x)",
    "Reshape": f"{X} s = Constant<value = int64[2] {{0, -1}}>() y = Reshape(x, s)",
    "Flatten": f"{X} y = Flatten<axis = -1>(x)",
    "Transpose": f"{X} y = Transpose<perm = [2, 0, 1]>(x)",
    "Transpose all": f"{X} y = Transpose(x)",
    "Squeeze": "float[2,1,3,1] x -> float y: a = Constant<value = int64[1] {-1}>() y = "
    "Squeeze(x, a)",
    "Squeeze all": "float[2,1,3,1] x -> float y: y = Squeeze(x)",
    "Unsqueeze": f"{X} a = Constant<value = int64[2] {{0, -1}}>() y = Unsqueeze(x, a)",
    "Concat": "float[2,3] x, float[2,1] z -> float y: y = Concat<axis = 1>(x, z)",
    "Split": "float[2,7] x -> float y, float z: y, z = Split<axis = 1, num_outputs = 2>(x)",
    "Split by sizes": "float[2,7] x -> float y, float z: s = Constant<value = int64[2] {5, 2}>() "
    "y, z = Split<axis = -1>(x, s)",
    "Slice": "float[6,7] x -> float y: s = Constant<value = int64[2] {-4, 5}>() "
    "e = Constant<value = int64[2] {9999, -9999}>() a = Constant<value = int64[2] {0, 1}>() "
    "t = Constant<value = int64[2] {2, -2}>() y = Slice(x, s, e, a, t)",
    "Slice from before the first": "float[6] x -> float y: "
    "s = Constant<value = int64[1] {-100}>() e = Constant<value = int64[1] {-101}>() "
    "a = Constant<value = int64[1] {0}>() t = Constant<value = int64[1] {-1}>() "
    "y = Slice(x, s, e, a, t)",
    "Slice of nothing": "float[6] x -> float y: s = Constant<value = int64[1] {4}>() "
    "e = Constant<value = int64[1] {2}>() y = Slice(x, s, e)",
    "Expand": "float[3,1] x -> float y: s = Constant<value = int64[3] {2, 1, 4}>() y = "
    "Expand(x, s)",
    "Tile": "float[2,3] x -> float y: r = Constant<value = int64[2] {2, 3}>() y = Tile(x, r)",
    "ConstantOfShape": "float[2,3] x -> int64 y: s = Shape(x) "
    "y = ConstantOfShape<value = int64[1] {7}>(s)",
    "Range": "int64 i -> int64 y: a = Constant<value_int = 10>() d = Constant<value_int = -3>() "
    "y = Range(a, i, d)",
    "Range of floats": "float x -> float y: a = Constant<value_float = -3.0>() "
    "d = Constant<value_float = 0.4>() y = Range(a, x, d)",
    "EyeLike": "float[3,4] x -> float y: y = EyeLike<k = 1>(x)",
    "Trilu": "float[2,3,4] x -> float y: k = Constant<value_int = -1>() y = Trilu<upper = 0>(x, k)",
    "Pad": f"{X} p = Constant<value = int64[6] {{0, 1, 2, 0, -1, 3}}>() "
    "v = Constant<value_float = 2.5>() y = Pad(x, p, v)",
    **{
        f"Pad {mode}": f"{X} p = Constant<value = int64[2] {{2, 1}}>() "
        f'a = Constant<value = int64[1] {{1}}>() y = Pad<mode = "{mode}">(x, p, , a)'
        for mode in ("edge", "reflect", "wrap")
    },
    "DepthToSpace": "float[1,8,2,3] x -> float y: y = DepthToSpace<blocksize = 2>(x)",
    "DepthToSpace CRD": "float[1,8,2,3] x -> float y: y = DepthToSpace<blocksize = 2, mode = "
    '"CRD">(x)',
    "SpaceToDepth": "float[1,2,4,6] x -> float y: y = SpaceToDepth<blocksize = 2>(x)",
    "ReverseSequence": "float[4,3,2] x -> float y: l = Constant<value = int64[3] {1, 4, 2}>() "
    "y = ReverseSequence(x, l)",
    # indices
    "Gather": "float[4,3] x, int64[2,2] i -> float y: y = Gather(x, i)",
    "Gather a column": "float[2,4,3] x -> float y: i = Constant<value_int = -1>() "
    "y = Gather<axis = 1>(x, i)",
    "Gather along an axis": "float[2,4,3] x, int64[2,2] i -> float y: y = Gather<axis = 1>(x, i)",
    "GatherElements": "float[4,3] x, int64[2,3] i -> float y: y = GatherElements(x, i)",
    "GatherND": "float[4,4,2] x, int64[3,2] i -> float y: y = GatherND(x, i)",
    "GatherND of batches": "float[2,4,3] x, int64[2,1] i -> float y: y = GatherND<batch_dims "
    "= 1>(x, i)",
    "ScatterElements": "float[4,3] x, float[1,3] u -> float y: i = Constant<value = int64[1,3] "
    "{1, -1, 2}>() y = ScatterElements(x, i, u)",
    **{
        f"ScatterElements {how}": "float[4,3] x, int64[3,3] i, float[3,3] u -> float y: "
        f'y = ScatterElements<reduction = "{how}">(x, i, u)'
        for how in ("add", "mul", "max")
    },
    "ScatterND": "float[4,3] x, float[2,3] u -> float y: i = Constant<value = int64[2,1] {3, 1}>() "
    "y = ScatterND(x, i, u)",
    **{
        f"ScatterND {how}": "float[4,3] x, int64[3,1] i, float[3,3] u -> float y: "
        f'y = ScatterND<reduction = "{how}">(x, i, u)'
        for how in ("add", "mul", "max")
    },
    "OneHot": "int64[2,3] i, float[2] v -> float y: d = Constant<value_int = 5>() "
    "y = OneHot<axis = 1>(i, d, v)",
    "TopK": "float[3,7] x -> float y, int64 z: k = Constant<value = int64[1] {3}>() y, z = "
    "TopK(x, k)",
    "TopK smallest": "float[3,7] x -> float y, int64 z: k = Constant<value = int64[1] {2}>() "
    "y, z = TopK<axis = 0, largest = 0>(x, k)",
    "ArgMax": "float[3,7] x -> int64 y: y = ArgMax<axis = 1, keepdims = 0>(x)",
    "ArgMin": "float[3,7] x -> int64 y: y = ArgMin(x)",
    "ArgMax of equals": "int32[3,7] i -> int64 y: y = ArgMax<axis = 1, select_last_index = 1>(i)",
    "NonZero": "float[3,4] x -> int64 y: r = Relu(x) y = NonZero(r)",
    "Compress": "float[3,4] x, bool[3] c -> float y: y = Compress<axis = 0>(x, c)",
    "Unique": "int64[9] i -> int64 y, int64 a, int64 b, int64 c: y, a, b, c = Unique(i)",
    "Unique unsorted": "int64[9] i -> int64 y, int64 a, int64 b, int64 c: "
    "y, a, b, c = Unique<sorted = 0>(i)",
    "CumSum": "float[3,4] x -> float y: a = Constant<value_int = 1>() "
    "y = CumSum<exclusive = 1, reverse = 1>(x, a)",
    "Einsum": 'float[2,3] x, float[3,4] z -> float y: y = Einsum<equation = "ij,jk->ki">(x, z)',
    # products
    "MatMul": "float[2,3,4] x, float[4,5] z -> float y: y = MatMul(x, z)",
    "MatMul of a vector": "float[4] x, float[2,4,5] z -> float y: y = MatMul(x, z)",
    "MatMul of integers": "int32[2,3] x, int32[3,4] z -> int32 y: y = MatMul(x, z)",
    "Gemm": "float[3,2] x, float[4,3] z, float[4] c -> float y: "
    "y = Gemm<alpha = 0.5, beta = 2.0, transA = 1, transB = 1>(x, z, c)",
    "Gemm with a row": "float[2,3] x, float[3,4] z, float[4] c -> float y: y = Gemm(x, z, c)",
    "Gemm with a column": "float[2,3] x, float[3,4] z, float[2,1] c -> float y: y = Gemm(x, z, c)",
    "FusedMatMul": "float[2,4,3] x, float[2,5,4] z -> float y: "
    "y = com.microsoft.FusedMatMul<alpha = 0.5, transA = 1, transB = 1>(x, z)",
    # convolutions and windows
    "Conv": "float[2,4,9,8] x, float[6,2,3,2] w, float[6] b -> float y: "
    "y = Conv<group = 2, strides = [2, 1], dilations = [1, 2], pads = [1, 0, 2, 1]>(x, w, b)",
    "Conv of one axis": "float[2,4,9] x, float[6,4,3] w -> float y: y = Conv<pads = [1, 1]>(x, w)",
    "Conv of three axes": "float[1,2,4,5,6] x, float[3,2,2,3,2] w -> float y: y = Conv(x, w)",
    "Conv same": "float[1,2,7,8] x, float[3,2,3,2] w -> float y: "
    'y = Conv<auto_pad = "SAME_LOWER", strides = [2, 2]>(x, w)',
    "ConvTranspose": "float[2,4,5,4] x, float[4,3,3,2] w, float[6] b -> float y: y = ConvTranspose"
    "<group = 2, strides = [2, 3], pads = [1, 0, 0, 1], output_padding = [1, 2]>(x, w, b)",
    "ConvTranspose to a shape": "float[1,2,5,4] x, float[2,3,3,3] w -> float y: y = ConvTranspose"
    '<strides = [2, 2], output_shape = [10, 8], auto_pad = "SAME_UPPER">(x, w)',
    "MaxPool": "float[2,3,9,8] x -> float y: y = MaxPool"
    "<kernel_shape = [3, 2], strides = [2, 2], pads = [1, 0, 1, 1]>(x)",
    "MaxPool up": "float[2,3,9,8] x -> float y: y = MaxPool"
    "<kernel_shape = [3, 3], strides = [2, 2], ceil_mode = 1>(x)",
    "MaxPool with indices": "float[2,3,9,8] x -> float y, int64 z: y, z = MaxPool"
    "<kernel_shape = [3, 2], strides = [2, 2], pads = [1, 0, 1, 1]>(x)",
    "MaxPool of codes": "uint8[1,2,6,6] x -> uint8 y: y = MaxPool<kernel_shape = [2, 2]>(x)",
    "AveragePool": "float[2,3,9,8] x -> float y: y = AveragePool"
    "<kernel_shape = [3, 2], strides = [2, 2], pads = [1, 0, 1, 1]>(x)",
    "AveragePool same on both sides": "float[2,3,9,8] x -> float y: y = AveragePool"
    "<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(x)",
    "AveragePool with padding": "float[2,3,9,8] x -> float y: y = "
    "AveragePool<count_include_pad = 1,"
    " kernel_shape = [3, 3], strides = [2, 2], pads = [1, 0, 1, 1]>(x)",
    "AveragePool up": "float[2,3,9,8] x -> float y: y = AveragePool"
    "<kernel_shape = [3, 3], strides = [2, 2], pads = [0, 1, 0, 1], ceil_mode = 1>(x)",
    "LpPool": "float[2,3,9,8] x -> float y: y = LpPool<kernel_shape = [2, 2], strides = [2, 2]>(x)",
    "MaxUnpool": "float[1,2,6,6] x -> float y: m, i = MaxPool<kernel_shape = [2, 2], "
    "strides = [2, 2]>(x) y = MaxUnpool<kernel_shape = [2, 2], strides = [2, 2]>(m, i)",
    "GlobalAveragePool": "float[2,3,4,5] x -> float y: y = GlobalAveragePool(x)",
    "GlobalMaxPool": "float[2,3,4,5] x -> float y: y = GlobalMaxPool(x)",
    "GlobalLpPool": "float[2,3,4,5] x -> float y: y = GlobalLpPool(x)",
    # normalisations
    "BatchNormalization": "float[2,3,4] x, float[3] s, float[3] b, float[3] m, float[3] p -> "
    "float y:"
    " y = BatchNormalization(x, s, b, m, p)",
    "InstanceNormalization": "float[2,3,4] x, float[3] s, float[3] b -> float y: "
    "y = InstanceNormalization(x, s, b)",
    "LayerNormalization": "float[2,3,4] x, float[3,4] s, float[3,4] b -> float y: "
    "y = LayerNormalization<axis = 1>(x, s, b)",
    "LayerNormalization with statistics": "float[2,3,4] x, float[4] s -> float y, float m, "
    "float i: "
    "y, m, i = LayerNormalization(x, s)",
    "LRN": "float[2,5,4,4] x -> float y: y = LRN<size = 3, alpha = 0.5>(x)",
    "MeanVarianceNormalization": "float[2,3,4,5] x -> float y: y = MeanVarianceNormalization(x)",
    "SimplifiedLayerNormalization": "float[2,3,4] x, float[4] s -> float y: "
    "y = SimplifiedLayerNormalization(x, s)",
    "SkipLayerNormalization": "float[2,3,4] x, float[2,3,4] k, float[4] s, float[4] b -> float y: "
    "y = com.microsoft.SkipLayerNormalization<epsilon = 0.00001>(x, k, s, b)",
    "SkipSimplifiedLayerNormalization": "float[2,3,4] x, float[2,3,4] k, float[4] s -> float y: "
    "y = com.microsoft.SkipSimplifiedLayerNormalization<epsilon = 0.00001>(x, k, s)",
    "BiasGelu": "float[2,3,4] x, float[4] b -> float y: y = com.microsoft.BiasGelu(x, b)",
    "FastGelu": "float[2,3,4] x, float[4] b -> float y: y = com.microsoft.FastGelu(x, b)",
    "QuickGelu": "float[2,3,4] x -> float y: y = com.microsoft.QuickGelu(x)",
    # recurrent
    **{
        f"LSTM {d}": f"float[5,2,3] x, float[{n},16,3] w, float[{n},16,4] r, float[{n},32] b -> "
        f'float y, float h, float c: y, h, c = LSTM<hidden_size = 4, direction = "{d}">(x, w, r, b)'
        for d, n in (("forward", 1), ("reverse", 1), ("bidirectional", 2))
    },
    "LSTM with all": "float[5,2,3] x, float[1,16,3] w, float[1,16,4] r, float[1,32] b, "
    "float[1,2,4] h0, float[1,2,4] c0, float[1,12] p -> float y, float h, float c: "
    "l = Constant<value = int32[2] {5, 3}>() "
    "y, h, c = LSTM<hidden_size = 4, clip = 2.0>(x, w, r, b, l, h0, c0, p)",
    **{
        f"GRU {v}": "float[5,2,3] x, float[2,12,3] w, float[2,12,4] r, float[2,24] b -> float y, "
        f'float h: y, h = GRU<hidden_size = 4, direction = "bidirectional", '
        f"linear_before_reset = {v}>(x, w, r, b)"
        for v in (0, 1)
    },
    "RNN": "float[5,2,3] x, float[1,4,3] w, float[1,4,4] r, float[1,8] b -> float y, float h: "
    'y, h = RNN<hidden_size = 4, activations = ["Relu"]>(x, w, r, b)',
    # bodies
    "If": "bool c, float[2,3] x -> float y: y = If(c) <then_branch = t () => (float a) "
    "{ a = Neg(x) }, else_branch = e () => (float b) { b = Abs(x) }>",
    "Loop": "float[3] x -> float y, float z: n = Constant<value_int = 4>() "
    "y, z = Loop(n, , x) <body = b (int64 i, bool c, float[3] s) => (bool d, float[3] t, "
    "float[3] u)"
    " { d = Identity(c) t = Mul(s, x) u = Neg(t) }>",
    "Loop that ends": "float[3] x -> float y: n = Constant<value_int = 9>() "
    "y = Loop(n, , x) <body = b (int64 i, bool c, float[3] s) => (bool d, float[3] t)"
    " { t = Add(s, x) k = Constant<value_int = 3>() d = Less(i, k) }>",
    "Scan": "float[2] x, float[4,2] s -> float y, float z: y, z = Scan<num_scan_inputs = 1, "
    "scan_input_directions = [1], body = b (float[2] a, float[2] r) => (float[2] c, float[2] d) "
    "{ c = Add(a, r) d = Mul(c, r) }>(x, s)",
    # sequences
    "Sequences": "float[2,3] x, float[2,3] z -> float y, int64 n: s = SequenceConstruct(x, z) "
    "i = Constant<value_int = -1>() a = SequenceAt(s, i) t = SequenceInsert(s, a) "
    "n = SequenceLength(t) y = ConcatFromSequence<axis = 0, new_axis = 1>(t)",
    "SplitToSequence": "float[6,2] x -> float y: n = Constant<value_int = 2>() "
    "s = SplitToSequence(x, n) y = ConcatFromSequence<axis = 1>(s)",
    # resampling
    **{
        f"Resize {mode} {how}": "float[1,2,5,4] x -> float y: s = Constant<value = float[4] "
        f'{{1, 1, {factors}}}>() y = Resize<mode = "{mode}", '
        f'coordinate_transformation_mode = "{how}">(x, , s)'
        for mode in ("nearest", "linear", "cubic")
        for how in ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")
        for factors in ("2, 1.5" if mode != "nearest" else "2, 3",)
    },
    "Resize to sizes": "float[1,2,5,4] x -> float y: s = Constant<value = int64[4] {1, 2, 3, 9}>() "
    'y = Resize<mode = "linear">(x, , , s)',
    "Resize floor": "float[1,2,5,4] x -> float y: s = Constant<value = float[4] {1, 1, 2.3, "
    "0.6}>() "
    'y = Resize<nearest_mode = "floor", coordinate_transformation_mode = "asymmetric">(x, , s)',
    "GridSample": "float[1,2,5,4] x, float[1,3,3,2] g -> float y: t = Tanh(g) y = GridSample(x, t)",
    "RoiAlign": "float[1,2,8,8] x -> float y: b = Constant<value = int64[2] {0, 0}>() "
    "r = Constant<value = float[2,4] {0, 1, 6, 5, 2, 2, 7, 7.5}>() "
    "y = RoiAlign<output_height = 2, output_width = 3, sampling_ratio = 2>(x, r, b)",
    # signals
    "HannWindow": "int64[2] i -> float y: n = Constant<value_int = 8>() y = HannWindow(n)",
    "STFT": "float[1,40,1] x, float[8] w -> float y: s = Constant<value_int = 4>() y = "
    "STFT(x, s, w)",
    # codes
    "QuantizeLinear": "float[2,3] x -> uint8 y: s = Constant<value_float = 0.01>() "
    "z = Constant<value = uint8 {128}>() y = QuantizeLinear(x, s, z)",
    "DequantizeLinear": "int8[2,3,4] x, float[3] p, int8[3] z -> float y: y = "
    "DequantizeLinear(x, p, z)",
    "DynamicQuantizeLinear": "float[2,3] x -> uint8 y, float s, uint8 z: "
    "y, s, z = DynamicQuantizeLinear(x)",
    "MatMulInteger": "uint8[2,3] x, int8[3,4] w, uint8 z -> int32 y: y = MatMulInteger(x, w, z)",
    "ConvInteger": "uint8[1,2,5,5] x, uint8[3,2,3,3] w, uint8 z -> int32 y: "
    "y = ConvInteger<pads = [1, 1, 1, 1]>(x, w, z)",
    "QLinearMatMul": "uint8[2,3] x, uint8[3,4] w -> uint8 y: s = Constant<value_float = 0.1>() "
    "t = Constant<value_float = 30.0>() z = Constant<value = uint8 {100}>() "
    "y = QLinearMatMul(x, s, z, w, s, z, t, z)",
    "QLinearConv": "uint8[1,2,5,5] x, int8[3,2,3,3] w, int32[3] b, float[3] p -> uint8 y: "
    "s = Constant<value_float = 0.1>() t = Constant<value_float = 30.0>() "
    "z = Constant<value = uint8 {100}>() n = Constant<value = int8[3] {0, 0, 0}>() "
    "y = QLinearConv(x, s, z, w, p, n, t, z, b)",
    "MatMulIntegerToFloat": "uint8[2,3] x, int8[3,4] w, float p, float[4] q, uint8 z, "
    "float[4] b -> "
    "float y: y = com.microsoft.MatMulIntegerToFloat(x, w, p, q, z, , b)",
    "DynamicQuantizeMatMul": "float[2,8] x, int8[8,4] w, float[4] p -> float y: "
    "y = com.microsoft.DynamicQuantizeMatMul(x, w, p)",
    "QLinearAdd": "uint8[2,3] x, uint8[2,3] w -> uint8 y: s = Constant<value_float = 0.1>() "
    "z = Constant<value = uint8 {100}>() y = com.microsoft.QLinearAdd(x, s, z, w, s, z, s, z)",
    "MatMulNBits": "float[2,40] x, uint8[6,2,16] w, float[6,2] p, uint8[6,1] z, float[6] b -> "
    "float y: "
    "y = com.microsoft.MatMulNBits<K = 40, N = 6, bits = 4, block_size = 32>(x, w, p, z, , b)",
    "MatMulNBits of 8 bits": "float[2,40] x, uint8[6,2,32] w, float[6,2] p -> float y: "
    "y = com.microsoft.MatMulNBits<K = 40, N = 6, bits = 8, block_size = 32>(x, w, p)",
    "MatMulBnb4": "float[2,64] x, uint8[192] w, float[6] p -> float y: "
    "y = com.microsoft.MatMulBnb4<K = 64, N = 6, block_size = 64, quant_type = 1>(x, w, p)",
    "GatherBlockQuantized": "uint8[5,16] w, int64[2,2] i, float[5,2] p -> float y: "
    "y = com.microsoft.GatherBlockQuantized<bits = 4, block_size = 16, gather_axis = 0, "
    "quantize_axis = 1>(w, i, p)",
    "InstanceNormalization of a pixel": "float[2,3,1,1] x, float[3] s, float[3] b -> float y: "
    "y = InstanceNormalization(x, s, b)",
    "Squeeze of no axes": "float[2,1,3] x -> float y: a = Constant<value = int64[0] {}>() "
    "y = Squeeze(x, a)",
    "Pad wrap and cut": "float[3,5] x -> float y: p = Constant<value = int64[4] {1, -1, 2, 3}>() "
    'y = Pad<mode = "wrap">(x, p)',
    "ConvTranspose with gaps": "float[1,1,3,3] x, float[1,1,2,2] w -> float y: "
    'y = ConvTranspose<auto_pad = "SAME_UPPER", strides = [3, 3]>(x, w)',
    "ConvTranspose of a shape": "float[1,1,3,3] x, float[1,1,2,2] w -> float y: "
    "y = ConvTranspose<output_shape = [9, 7], strides = [3, 3]>(x, w)",
    "MaxRoiPool": "float[1,2,8,8] x -> float y: "
    "r = Constant<value = float[2,5] {0, 0, 0, 3, 4, 0, 1, 1, 5, 4}>() "
    "y = MaxRoiPool<pooled_shape = [2, 2], spatial_scale = 0.9>(x, r)",
    "MaxUnpool to a shape": "float[1,1,4,4] x -> float y: "
    "m, i = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(x) "
    "s = Constant<value = int64[4] {1, 1, 5, 5}>() "
    "y = MaxUnpool<kernel_shape = [2, 2], strides = [2, 2]>(m, i, s)",
    "Resize around the middle": "float[1,1,5,7] x -> float y: "
    "s = Constant<value = float[4] {1, 1, 1.7, 0.6}>() "
    'y = Resize<coordinate_transformation_mode = "half_pixel_symmetric", mode = "linear">(x, , s)',
    "DFT": "float[2,5,4,1] x -> float y: y = DFT(x)",
    **{
        f"DFT along {axis}": f"float[2,5,4,2] x -> float y: a = Constant<value_int = {axis}>() "
        "y = DFT(x, , a)"
        for axis in (-3, -2, 1, 2)
    },
    "DFT with a half": "float[2,5,1] x -> float y: a = Constant<value_int = -2>() "
    "y = DFT<onesided = 1>(x, , a)",
    "RNN of scaled tanh": "float[4,2,3] x, float[1,5,3] w, float[1,5,5] r -> float y: "
    'y = RNN<hidden_size = 5, activations = ["ScaledTanh"], activation_alpha = [0.7], '
    "activation_beta = [0.4]>(x, w, r)",
    "GRU of sums": "float[4,2,3] x, float[1,15,3] w, float[1,15,5] r -> float y: "
    'y = GRU<hidden_size = 5, activations = ["HardSigmoid", "Affine"], '
    "activation_alpha = [0.3, 0.6], activation_beta = [0.4, 0.1]>(x, w, r)",
    "LSTM of all kinds": "float[4,2,3] x, float[1,20,3] w, float[1,20,5] r -> float y: "
    'y = LSTM<hidden_size = 5, activations = ["HardSigmoid", "ScaledTanh", "Affine"], '
    "activation_alpha = [0.3, 0.6, 0.8], activation_beta = [0.4, 0.9, 0.1]>(x, w, r)",
    # attention
    "MultiHeadAttention": "float[2,3,8] q, float[2,5,8] k, float[2,5,8] v, float[24] b, "
    "float[1,1,3,5] a -> float y: "
    "y = com.microsoft.MultiHeadAttention<num_heads = 2>(q, k, v, b, , a)",
    "packed Attention": "float[2,3,8] x, float[8,24] w, float[24] b -> float y: m = "
    "Constant<value = "
    "int32[2] {2, 3}>() y = com.microsoft.Attention<num_heads = 2>(x, w, b, m)",
    "causal packed Attention": "float[2,3,8] x, float[8,24] w, float[24] b -> float y: "
    "y = com.microsoft.Attention<num_heads = 2, unidirectional = 1>(x, w, b)",
    "GroupQueryAttention": "float[2,3,32] q, float[2,3,16] k, float[2,3,16] v -> float y: "
    "l = Constant<value = int32[2,1] {2, 2}>() t = Constant<value = int32 {3}>() "
    "y, a, b = com.microsoft.GroupQueryAttention<num_heads = 4, kv_num_heads = 2>"
    "(q, k, v, , , l, t)",
    "RotaryEmbedding of onnxruntime": "float[2,3,16] x, int64[2,3] i, float[4,4] c, "
    "float[4,4] s -> "
    "float y: y = com.microsoft.RotaryEmbedding(x, i, c, s)",
}
LATER = {
    **{
        f"scores {mode} of Attention": "float[2,2,3,8] q, float[2,2,5,8] k, float[2,2,5,8] v, "
        "float[3,5] m -> float y, float s: "
        f"y, , , s = Attention<softcap = 2.0, qk_matmul_output_mode = {mode}>(q, k, v, m)"
        for mode in (0, 3)
    },
    "Attention": "float[2,4,3,8] q, float[2,2,5,8] k, float[2,2,5,8] v, float[3,5] m -> float y: "
    "y = Attention(q, k, v, m)",
    "causal Attention": "float[2,3,16] q, float[2,3,16] k, float[2,3,16] v -> float y: "
    "y = Attention<is_causal = 1, q_num_heads = 2, kv_num_heads = 2, scale = 0.3>(q, k, v)",
    "Attention with a past": "float[2,2,3,8] q, float[2,2,3,8] k, float[2,2,3,8] v, "
    "float[2,2,4,8] a, float[2,2,4,8] b -> float y, float c, float d: "
    "y, c, d = Attention(q, k, v, , a, b)",
    "capped Attention": "float[2,2,3,8] q, float[2,2,5,8] k, float[2,2,5,8] v, bool[3,5] m -> "
    "float y: y = Attention<softcap = 2.0>(q, k, v, m)",
    "RMSNormalization": "float[2,3,4] x, float[4] s -> float y: y = RMSNormalization(x, s)",
    "RotaryEmbedding": "float[2,3,16] x, float[4,4] c, float[4,4] s, int64[2,3] i -> float y: "
    "y = RotaryEmbedding<num_heads = 2, interleaved = 1>(x, c, s, i)",
    "GroupNormalization": "float[2,4,5] x, float[4] s, float[4] b -> float y: "
    "y = GroupNormalization<num_groups = 2>(x, s, b)",
    "DequantizeLinear of blocks": "int8[2,6] x, float[2,3] p -> float y: "
    "y = DequantizeLinear<axis = 1, block_size = 2>(x, p)",
}
# Nothing comes out that has gradients.
CODED = {
    **{
        f"{name} of integers": f"int32[2,3] i -> int32 y: y = {name}(i)"
        for name in ("ReduceL2", "ReduceLogSum", "ReduceLogSumExp")
    },
    "ReduceMean of nothing": "float[2,0] x -> float y: a = Constant<value = int64[1] {1}>() "
    "y = ReduceMean(x, a)",
    "QuantizeLinear of 16 bits": "float[4] x -> uint16 y: s = Constant<value_float = 0.001>() "
    "z = Constant<value = uint16 {32768}>() y = QuantizeLinear(x, s, z)",
    "Loop of no rounds": "int64[3] x -> int64 z, int64 y: n = Constant<value = int64 {0}>() "
    "z, y = Loop(n, , x) <body = b (int64 i, bool c, int64[3] s) => (bool d, int64[3] t, "
    "int64[3] u) { d = Identity(c) t = Add(s, x) u = Neg(t) }>",
    "OneHot of floats": "float[4] x, float[2] v -> float y: d = Constant<value_float = 3.0>() "
    "z = Sub(x, x) f = Constant<value = float[4] {0, 1.6, -0.4, -1}>() i = Add(z, f) "
    "y = OneHot(i, d, v)",
    "LayerNormalization in 16 bits": "float16[2,8] x, float16[8] s -> float16 y, float m, "
    "float v: t = Constant<value_float = 300.0>() c = CastLike(t, x) w = Mul(x, c) "
    "y, m, v = LayerNormalization(w, s)",
    **{
        f"Cast to {kind} with saturate {how}": "float[9] x -> float y: "
        "f = Constant<value = float[9] {1.3, 448, 463, 464, 465, -1e9, 61439, 1e9, -57345}>() "
        "z = Sub(x, x) m = Add(z, f) "
        f"c = Cast<to = {number}, saturate = {how}>(m) y = Cast<to = 1>(c)"
        for kind, number in (("E4M3", 17), ("E5M2", 19))
        for how in (0, 1)
    },
    **{
        f"QLinearSoftmax of opset {opset}": "uint8[2,3,4] x -> uint8 y: "
        "s = Constant<value_float = 0.1>() t = Constant<value_float = 0.00390625>() "
        "z = Constant<value = uint8 {0}>() "
        f"y = com.microsoft.QLinearSoftmax<axis = 1, opset = {opset}>(x, s, z, t, z)"
        for opset in (12, 13)
    },
    "Resize of integers": "int32[1,1,3,4] x -> int32 y: s = Constant<value = float[4] "
    "{1, 1, 2, 3}>() y = Resize(x, , s)",
    **{
        f"Cast to {kind}": "float[4] x -> int32 y: z = Sub(x, x) "
        "v = Constant<value = float[4] {1.3, 9.5, -12.5, 19}>() m = Add(z, v) "
        f"c = Cast<to = {number}>(m) y = Cast<to = 6>(c)"
        for kind, number in (("int4", 22), ("uint4", 21))
    },
}
EARLIER = {
    "Softmax": "float[2,3,4] x -> float y: y = Softmax<axis = 1>(x)",
    "Squeeze": "float[2,1,3] x -> float y: y = Squeeze<axes = [1]>(x)",
    "Unsqueeze": "float[2,3] x -> float y: y = Unsqueeze<axes = [1]>(x)",
    "ReduceMean": "float[2,3,4] x -> float y: y = ReduceMean<axes = [-1], keepdims = 0>(x)",
    "ReduceSum": "float[2,3,4] x -> float y: y = ReduceSum<axes = [1]>(x)",
    "Split": "float[2,6] x -> float y, float z: y, z = Split<axis = 1, split = [2, 4]>(x)",
    "Dropout": "float[2,3] x -> float y: y = Dropout(x)",
}
MIDDLE = {
    "DFT": "float[2,5,4,1] x -> float y: y = DFT(x)",
    "DFT of an axis from the end": "float[2,5,4,2] x -> float y: y = DFT<axis = -3>(x)",
    "inverse DFT of real numbers": "float[2,5,1] x -> float y: y = DFT<inverse = 1>(x)",
}
OLDEST = {
    "Slice": "float[4,5] x -> float y: y = Slice<axes = [1], starts = [1], ends = [-1]>(x)",
    "Clip": "float[4,5] x -> float y: y = Clip<min = 0.0, max = 0.5>(x)",
    "Pad": "float[4,5] x -> float y: y = Pad<pads = [0, 1, 2, 0], value = 1.5>(x)",
    "Upsample": "float[1,2,3,4] x -> float y: s = Constant<value = float[4] {1, 1, 2, 3}>() "
    "y = Upsample(x, s)",
}
TENTH = {
    "Resize": "float[1,1,5,7] x -> float y: s = Constant<value = float[4] {1, 1, 0.6, 0.4}>() "
    "y = Resize(x, s)",
}
ALL = [
    pytest.param(body, opset, id=f"{name}-{opset}")
    for cases, opset in (
        (CASES, 20),
        (LATER, 23),
        (CODED, 23),
        (MIDDLE, 17),
        (EARLIER, 11),
        (OLDEST, 9),
    )
    for name, body in cases.items()
]


@pytest.mark.parametrize(("body", "opset"), ALL)
def test_an_operator_computes_what_onnxruntime_does(body, opset):
    model = built(body, opset=opset)
    feeds = drawn(model)
    module = module_of(model)
    with torch.no_grad():
        found = module(**feeds)
    for name, expected in Session(model)(feeds).items():
        value = found[name].numpy()
        assert value.dtype == expected.dtype
        assert value.shape == expected.shape
        np.testing.assert_allclose(value, expected, rtol=2e-5, atol=2e-5)


REFUSED = {
    "GroupQueryAttention": (
        20, "smooth_softmax is not known here", "float[2,3,32] q, float[2,3,16] k, float[2,3,16] v "
        "-> float y: l = Constant<value = int32[2,1] {2, 2}>() t = Constant<value = int32 {3}>() "
        "y, a, b = com.microsoft.GroupQueryAttention<num_heads = 4, kv_num_heads = 2, "
        "smooth_softmax = 1>(q, k, v, , , l, t)",
    ),
    "RoiAlign": (
        16, "the mode max is not known here", "float[1,1,4,4] x, float[1,4] r, int64[1] i -> float "
        'y: y = RoiAlign<mode = "max">(x, r, i)',
    ),
    "Attention": (
        24, "is_causal with nonpad_kv_seqlen is not known here", "float[2,2,3,8] q, "
        "float[2,2,5,8] k, int64[2] n -> float y: y = Attention<is_causal = 1>(q, k, k, , , , n)",
    ),
    "Attention with scores": (
        23, "qk_matmul_output_mode 2 is not known here", "float[2,2,3,8] q, float[2,2,5,8] k -> "
        "float y, float s: y, , , s = Attention<qk_matmul_output_mode = 2>(q, k, k)",
    ),
    "Resize": (
        20, "values between those of integers are not known here", "uint8[1,1,3,4] x -> uint8 y: "
        's = Constant<value = float[4] {1, 1, 2, 3}>() y = Resize<mode = "linear">(x, , s)',
    ),
    "MaxPool": (
        12, "auto_pad of dilated windows is not known here", "float[1,1,9,9] x -> float y: "
        'y = MaxPool<kernel_shape = [3, 2], dilations = [2, 2], auto_pad = "SAME_UPPER">(x)',
    ),
    "Resize of nearest": (
        19, "the nearest of half_pixel_symmetric", "float[1,1,5,7] x -> float y: "
        "s = Constant<value = float[4] {1, 1, 1.7, 0.6}>() "
        'y = Resize<coordinate_transformation_mode = "half_pixel_symmetric">(x, , s)',
    ),
    "BatchNormalization": (
        7, "statistics of each place (spatial = 0) are not known here", "float[1,2,3] x, "
        "float[2,3] s -> float y: y = BatchNormalization<spatial = 0>(x, s, s, s, s)",
    ),
    "Scan": (
        8, "Scan of opset 8 is not known here", "float[1,2,3] x -> float y: "
        "y = Scan<num_scan_inputs = 1, body = b (float[3] r) => (float[3] o) { o = Identity(r) }>"
        "(, x)",
    ),
    "Cast": (
        20, "torch has no type for string", "float[2] x -> string y: y = Cast<to = 8>(x)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_torch_would_compute_otherwise_is_refused_before_anything_runs(name):
    opset, why, body = REFUSED[name]
    operator = name.split()[0]
    with pytest.raises(InputError, match=f"^{operator} .*: {re.escape(why)}"):
        module_of(built(body, opset=opset))


FAILING = {
    "ReduceMax": "float[2,0] x -> float y: a = Constant<value = int64[1] {1}>() "
    "y = ReduceMax(x, a)",
    "Sub": "uint32[4] x, uint32[4] z -> uint32 y: y = Sub(x, z)",
}


@pytest.mark.parametrize("name", FAILING)
def test_what_torch_does_not_compute_is_one_error_that_names_the_node(name):
    model = built(FAILING[name])
    with pytest.raises(InputError, match=f"^{name} y: torch says: "):
        module_of(model)(**drawn(model))


def test_a_vector_of_zeros_has_finite_gradients_of_its_size():
    x = torch.zeros(2, 3, requires_grad=True)
    module_of(built("float[2,3] x -> float y: y = LpNormalization(x)"))(x)["y"].sum().backward()
    assert torch.isfinite(x.grad).all()


def test_every_row_of_the_table_is_an_operator_of_onnx_or_of_onnxruntime():
    known = {s.name for s in onnx.defs.get_all_schemas() if s.domain == ""}
    own = {name for domain, name in OPERATIONS if domain == ""} - known
    assert own == {"SimplifiedLayerNormalization"}
    assert {domain for domain, _ in OPERATIONS} == {"", "com.microsoft"}
