"""Products of codes, computed on the whole numbers as floats so that gradients pass."""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir
import torch
import torch.nn.functional as F

from lwqc.learn.functions.codes import along, dequantize, dynamic, quantize
from lwqc.learn.functions.convolution import conv
from lwqc.learn.functions.products import gemm
from lwqc.learn.functions.reductions import softmax
from lwqc.learn.operation import Call, Operation, Table, Tensor

# Two operands and the result: places of codes, scale and zero point of each.
_THREE = ((0, 1, 2), (3, 4, 5), (None, 6, 7))
# So many products of two differences of bytes, at most 255 each, sum up exactly in float32.
_EXACT = 256


def _centred(
    codes: Tensor, zero: Tensor | None, axis: int, kind: torch.dtype = torch.float64
) -> Tensor:
    """Codes less their zero points. kind: of what codes give that are none of floats.

    float64 holds all sums of products of them.
    """
    x = codes if codes.is_floating_point() else codes.to(kind)
    if zero is None:
        return x
    spread = zero if zero.ndim == x.ndim else along(zero, x.ndim, axis % x.ndim, 0, 0)
    return x - spread.to(x.dtype)


def _whole(x: Tensor) -> Tensor:
    return x if x.requires_grad else x.to(torch.int32)


def _matmul_integer(
    call: Call, a: Tensor, b: Tensor, a_zero: Tensor | None = None, b_zero: Tensor | None = None
) -> Tensor:
    if a.is_floating_point() or b.is_floating_point() or b.ndim == 1:
        left, right = _centred(a, a_zero, -2), _centred(b, b_zero, -1)
        wide = torch.promote_types(left.dtype, right.dtype)
        return _whole(torch.matmul(left.to(wide), right.to(wide)))
    left = _centred(a, a_zero, -2, torch.float32)
    right = _centred(b, b_zero, -1, torch.float32)
    parts = zip(torch.split(left, _EXACT, -1), torch.split(right, _EXACT, -2), strict=True)
    products = (torch.matmul(x, y).to(torch.int32) for x, y in parts)
    total = next(products)
    for product in products:
        total += product
    return total


def _conv_integer(
    call: Call, x: Tensor, w: Tensor, x_zero: Tensor | None = None, w_zero: Tensor | None = None
) -> Tensor:
    left, right = _centred(x, x_zero, 1), _centred(w, w_zero, 0)
    wide = torch.promote_types(left.dtype, right.dtype)
    return _whole(conv(call, left.to(wide), right.to(wide)))


def _matmul_to_float(
    call: Call,
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    a_zero: Tensor | None = None,
    b_zero: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """com.microsoft.MatMulIntegerToFloat."""
    sums = _matmul_integer(call, a, b, a_zero, b_zero).to(a_scale.dtype)
    made = sums * (a_scale * b_scale)
    return made if bias is None else made + bias


def _dynamic_matmul(
    call: Call,
    a: Tensor,
    b: Tensor,
    scale: Tensor,
    zero: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """com.microsoft.DynamicQuantizeMatMul."""
    codes, a_scale, a_zero = dynamic(call, a)
    return _matmul_to_float(call, codes, b, a_scale, scale, a_zero, zero, bias)


def _decoded(x: Tensor, scale: Tensor, zero: Tensor | None, axis: int = 1) -> Tensor:
    return dequantize(Call("", 13, {"axis": axis}), x, scale, zero)


def _coded(x: Tensor, scale: Tensor, zero: Tensor | None, kind: ir.DataType | None) -> Tensor:
    attributes = {} if kind is None else {"output_dtype": kind.value}
    types = (None, None, kind)
    return quantize(Call("", 21, attributes, types=types), x, scale, zero)


def _qlinear_matmul(
    call: Call,
    a: Tensor,
    a_scale: Tensor,
    a_zero: Tensor,
    b: Tensor,
    b_scale: Tensor,
    b_zero: Tensor,
    scale: Tensor,
    zero: Tensor,
) -> Tensor:
    made = torch.matmul(_decoded(a, a_scale, a_zero, -2), _decoded(b, b_scale, b_zero, -1))
    return _coded(made, scale, zero, call.type_of(7))


def _qlinear_conv(
    call: Call,
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor,
    w: Tensor,
    w_scale: Tensor,
    w_zero: Tensor,
    scale: Tensor,
    zero: Tensor,
    bias: Tensor | None = None,
) -> Tensor:
    added = None if bias is None else bias.to(x_scale.dtype) * (x_scale * w_scale)
    if added is not None and added.numel() == 1:
        added = added.expand(w.shape[0])
    made = conv(call, _decoded(x, x_scale, x_zero), _decoded(w, w_scale, w_zero, 0), added)
    return _coded(made, scale, zero, call.type_of(7))


def _qgemm(
    call: Call,
    a: Tensor,
    a_scale: Tensor,
    a_zero: Tensor,
    b: Tensor,
    b_scale: Tensor,
    b_zero: Tensor,
    c: Tensor | None = None,
    scale: Tensor | None = None,
    zero: Tensor | None = None,
) -> Tensor:
    """com.microsoft.QGemm: floats where there is no scale for the result."""
    axis = 0 if call.get("transB", 0) else 1
    made = gemm(call, _decoded(a, a_scale, a_zero), _decoded(b, b_scale, b_zero, axis))
    if c is not None:
        made = made + c.to(made.dtype) * (call.get("alpha", 1.0) * a_scale * b_scale)
    return made if scale is None else _coded(made, scale, zero, call.type_of(8))


def _qlinear_binary(name: str) -> Operation:
    """com.microsoft.QLinearAdd, QLinearMul."""

    def run(
        call: Call,
        a: Tensor,
        a_scale: Tensor,
        a_zero: Tensor | None,
        b: Tensor,
        b_scale: Tensor,
        b_zero: Tensor | None,
        scale: Tensor,
        zero: Tensor | None = None,
    ) -> Tensor:
        left, right = _decoded(a, a_scale, a_zero), _decoded(b, b_scale, b_zero)
        made = left + right if name == "add" else left * right
        return _coded(made, scale, zero, call.type_of(7) or call.type_of(0))

    return Operation(run, fixed=(1, 4, 6), grids=_THREE)


def _qlinear_unary(name: str) -> Operation:
    """com.microsoft.QLinearSigmoid, QLinearLeakyRelu, QLinearSoftmax and the global mean."""

    def run(
        call: Call,
        x: Tensor,
        x_scale: Tensor,
        x_zero: Tensor | None,
        scale: Tensor,
        zero: Tensor | None = None,
    ) -> Tensor:
        value = _decoded(x, x_scale, x_zero)
        if name == "sigmoid":
            made = torch.sigmoid(value)
        elif name == "leaky":
            made = F.leaky_relu(value, call.get("alpha", 0.01))
        elif name == "softmax":
            made = softmax(replace(call, opset=call.get("opset", 13)), value)
        else:
            last = bool(call.get("channels_last", 0))
            axes = list(range(1, x.ndim - 1) if last else range(2, x.ndim))
            made = value.mean(axes, True)
        return _coded(made, scale, zero, call.type_of(4) or call.type_of(0))

    return Operation(run, fixed=(1, 3), grids=((0, 1, 2), (None, 3, 4)))


def _qlinear_concat(call: Call, scale: Tensor, zero: Tensor, *parts: Tensor) -> Tensor:
    values = [_decoded(parts[i], parts[i + 1], parts[i + 2]) for i in range(0, len(parts), 3)]
    return _coded(torch.cat(values, call.get("axis")), scale, zero, call.type_of(1))


_MS = "com.microsoft"

TABLE: Table = {
    ("", "ConvInteger"): Operation(_conv_integer, codes=(0, 1)),
    ("", "MatMulInteger"): Operation(_matmul_integer, codes=(0, 1)),
    ("", "QLinearConv"): Operation(
        _qlinear_conv, fixed=(1, 4, 6), codes=(3, 8), scale=4, grids=_THREE
    ),
    ("", "QLinearMatMul"): Operation(
        _qlinear_matmul, fixed=(1, 4, 6), codes=(0, 3), scale=4, grids=_THREE
    ),
    (_MS, "DynamicQuantizeMatMul"): Operation(_dynamic_matmul, fixed=(2,), codes=(1,), scale=2),
    (_MS, "MatMulIntegerToFloat"): Operation(
        _matmul_to_float, fixed=(2, 3), codes=(0, 1), scale=3, grids=((0, 2, 4), (1, 3, 5))
    ),
    (_MS, "QGemm"): Operation(
        _qgemm,
        fixed=(1, 4, 7),
        codes=(3, 6),
        scale=4,
        grids=((0, 1, 2), (3, 4, 5), (None, 7, 8)),
    ),
    (_MS, "QLinearAdd"): _qlinear_binary("add"),
    (_MS, "QLinearConcat"): Operation(_qlinear_concat, fixed=(0,)),
    (_MS, "QLinearGlobalAveragePool"): _qlinear_unary("mean"),
    (_MS, "QLinearLeakyRelu"): _qlinear_unary("leaky"),
    (_MS, "QLinearMul"): _qlinear_binary("mul"),
    (_MS, "QLinearSigmoid"): _qlinear_unary("sigmoid"),
    (_MS, "QLinearSoftmax"): _qlinear_unary("softmax"),
}
