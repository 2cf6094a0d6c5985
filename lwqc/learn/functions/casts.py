"""Operators that give tensors another type."""

from __future__ import annotations

import onnx_ir as ir
import torch

from lwqc.learn.functions.codes import RANGES
from lwqc.learn.operation import Call, Operation, Table, Tensor
from lwqc.learn.tensors import TYPES

# What is above the first, or the second itself, rounds to no number of the type.
_LARGEST_FLOAT8 = {torch.float8_e4m3fn: 464.0, torch.float8_e5m2: 61440.0}


def _cast(call: Call, x: Tensor) -> Tensor:
    return _converted(call, x, ir.DataType(call.get("to")))


def _cast_like(call: Call, x: Tensor, like: Tensor) -> Tensor:
    kind = call.type_of(1)
    return x.to(like.dtype) if kind is None else _converted(call, x, kind)


def _converted(call: Call, x: Tensor, kind: ir.DataType) -> Tensor:
    """Codes of fewer than 8 bits keep the lowest bits, floats being rounded: so onnxruntime."""
    wanted = TYPES[kind]
    if kind.bitwidth < 8 and kind in RANGES:
        low, count = RANGES[kind][0], 2**kind.bitwidth
        if x.is_floating_point():
            x = x.double()
            x = x.sign() * torch.floor(x.abs() + 0.5)  # halves away from zero
        return (torch.remainder(x.to(torch.int64) - low, count) + low).to(wanted)
    if wanted in _LARGEST_FLOAT8 and x.dtype is not wanted:
        return _eight_bits(x, wanted, saturated=bool(call.get("saturate", 1)))
    return x.to(wanted)


def _eight_bits(x: Tensor, wanted: torch.dtype, *, saturated: bool) -> Tensor:
    """What is too large becomes the largest number, or the infinity of a type that has one."""
    wide = x if x.dtype is torch.float64 else x.float()
    most = torch.finfo(wanted).max
    made = wide.clamp(-most, most)
    if saturated:
        return made.to(wanted)
    beyond = torch.nan if wanted is torch.float8_e4m3fn else torch.inf
    over = wide.abs() > _LARGEST_FLOAT8[wanted]
    if wanted is torch.float8_e5m2:
        over = wide.abs() >= _LARGEST_FLOAT8[wanted]
    return torch.where(over, wide.sign() * beyond, made).to(wanted)


def _why_not(call: Call, node: ir.Node) -> str:
    kind = ir.DataType(call.get("to"))
    return "" if kind in TYPES else f"torch has no type for {kind.name.lower()}"


def _why_not_like(call: Call, node: ir.Node) -> str:
    kind = call.type_of(1)
    return "" if kind is None or kind in TYPES else f"torch has no type for {kind.name.lower()}"


TABLE: Table = {
    ("", "Cast"): Operation(_cast, refused=_why_not),
    ("", "CastLike"): Operation(_cast_like, refused=_why_not_like),
}
