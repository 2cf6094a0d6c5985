"""Codes and what they stand for: quantizing, with gradients that go straight through rounding."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import torch

from lwqc.errors import InputError
from lwqc.learn.operation import Call, Operation, Table, Tensor

RANGES: dict[ir.DataType, tuple[int, int]] = {
    ir.DataType.INT2: (-2, 1),
    ir.DataType.UINT2: (0, 3),
    ir.DataType.INT4: (-8, 7),
    ir.DataType.UINT4: (0, 15),
    ir.DataType.INT8: (-128, 127),
    ir.DataType.UINT8: (0, 255),
    ir.DataType.INT16: (-(2**15), 2**15 - 1),
    ir.DataType.UINT16: (0, 2**16 - 1),
    ir.DataType.INT32: (-(2**31), 2**31 - 1),
}
_HELD = {
    ir.DataType.INT2: torch.int8,
    ir.DataType.UINT2: torch.uint8,
    ir.DataType.INT4: torch.int8,
    ir.DataType.UINT4: torch.uint8,
    ir.DataType.INT8: torch.int8,
    ir.DataType.UINT8: torch.uint8,
    ir.DataType.INT16: torch.int16,
    ir.DataType.UINT16: torch.uint16,
    ir.DataType.INT32: torch.int32,
}


class _Round(torch.autograd.Function):
    """Rounding to the nearest even number, whose gradient is that of no rounding."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.round(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def rounded(x: Tensor) -> Tensor:
    """Whole numbers; gradients go straight through."""
    made: Tensor = _Round.apply(x)  # type: ignore[no-untyped-call]
    return made


def to_codes(x: Tensor, kind: ir.DataType) -> Tensor:
    """Codes of a type: floats that hold whole numbers where gradients are wanted of them.

    Values outside of the type's range have no gradient.
    """
    low, high = RANGES[kind]
    made = rounded(x).clamp(low, high)
    return made if made.requires_grad else made.to(_HELD[kind])


def along(values: Tensor, rank: int, axis: int, block: int, size: int) -> Tensor:
    """Scales or zero points spread over a tensor: one, one per index of an axis, or per block."""
    if block:
        return values.repeat_interleave(block, axis).narrow(axis, 0, size)
    if values.numel() == 1:
        return values.reshape(())
    return values.reshape([-1 if i == axis % rank else 1 for i in range(rank)])


def decoded(codes: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
    """The numbers that codes stand for, scale and zero point being spread already."""
    numbers = codes.to(scale.dtype)
    return (numbers if zero is None else numbers - zero.to(scale.dtype)) * scale


def _spread(call: Call, values: Tensor, x: Tensor) -> Tensor:
    axis = call.get("axis", 1) if x.ndim else 0
    axis = axis % x.ndim if x.ndim else 0
    size = x.shape[axis] if x.ndim else 1
    return along(values, x.ndim, axis, call.get("block_size", 0), size)


def quantize(call: Call, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """QuantizeLinear."""
    kind = call.type_of(2) if zero is not None else None
    if kind is None:
        kind = ir.DataType(call.get("output_dtype") or ir.DataType.UINT8)
        kind = _KINDS.get(zero.dtype) if zero is not None else kind
    if kind not in RANGES:
        raise InputError(f"{call.label}: codes of this type are not known here")
    made = x / _spread(call, scale, x)
    made = rounded(made)
    if zero is not None:
        made = made + _spread(call, zero, x).to(made.dtype)
    return to_codes(made, kind)


_KINDS = {
    torch.int8: ir.DataType.INT8,
    torch.uint8: ir.DataType.UINT8,
    torch.int16: ir.DataType.INT16,
    torch.uint16: ir.DataType.UINT16,
    torch.int32: ir.DataType.INT32,
}


def dequantize(call: Call, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """DequantizeLinear."""
    spread = None if zero is None else _spread(call, zero, x)
    return decoded(x, _spread(call, scale, x), spread)


def dynamic(call: Call, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of the whole tensor, in 8 bits without sign. The range has no gradient."""
    with torch.no_grad():
        low, high = x.amin().clamp(max=0), x.amax().clamp(min=0)
        scale = (high - low) / 255
        scale = torch.where(scale == 0, torch.ones_like(scale), scale)
        zero = torch.round(-low / scale).clamp(0, 255)
    codes = to_codes(rounded(x / scale) + zero, ir.DataType.UINT8)
    return codes, scale, zero.to(torch.uint8)


_MS = "com.microsoft"
_QUANTIZE = Operation(quantize, fixed=(1,), grids=((None, 1, 2),))
_DEQUANTIZE = Operation(dequantize, fixed=(1,), codes=(0,), scale=1, grids=((0, 1, 2),))

TABLE: Table = {
    ("", "DequantizeLinear"): _DEQUANTIZE,
    ("", "DynamicQuantizeLinear"): Operation(dynamic),
    ("", "QuantizeLinear"): _QUANTIZE,
    (_MS, "DequantizeLinear"): _DEQUANTIZE,
    (_MS, "QuantizeLinear"): _QUANTIZE,
}
