"""Products and tables whose weights lie as packed codes: operators of onnxruntime's own."""

from __future__ import annotations

import onnx_ir as ir
import torch
import torch.nn.functional as F

from lwqc.errors import InputError
from lwqc.learn.operation import Call, Operation, Table, Tensor

# bitsandbytes' tables, as onnxruntime has them.
_FP4 = [0, 0.00520833, 0.66666667, 1, 0.33333333, 0.5, 0.16666667, 0.25]
_CODEBOOKS = {
    0: [*_FP4, *(-v for v in _FP4)],
    1: [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
        -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
        0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
        0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ],
}  # fmt: skip


def unpacked(packed: Tensor, bits: int) -> Tensor:
    """Codes [..., k] of bytes [..., k * bits / 8], the first one in the low bits."""
    if bits == 8 or packed.is_floating_point():
        return packed
    shifts = torch.arange(0, 8, bits, device=packed.device, dtype=torch.uint8)
    codes: Tensor = (packed[..., None] >> shifts) & (2**bits - 1)
    return codes.reshape(*packed.shape[:-1], -1)


def _zeros(zero: Tensor | None, bits: int, rows: int, blocks: int, like: Tensor) -> Tensor:
    """Zero points [rows, blocks]; the middle of the range where there are none."""
    if zero is None:
        return torch.full((rows, blocks), 2.0 ** (bits - 1), dtype=like.dtype, device=like.device)
    if zero.is_floating_point():
        return zero.reshape(rows, blocks).to(like.dtype)
    packed = zero.reshape(rows, -1)
    return unpacked(packed, bits)[:, :blocks].to(like.dtype)


def _matmul_nbits(
    call: Call,
    a: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None = None,
    groups: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Codes [N, blocks, bytes of a block]; scales [N, blocks]."""
    if groups is not None:
        raise InputError(f"{call.label}: reordered groups (g_idx) are not known here")
    k, n, bits, block = (call.get(name) for name in ("K", "N", "bits", "block_size"))
    blocks = -(-k // block)
    numbers = unpacked(codes.reshape(n, blocks, -1), bits).to(scale.dtype)
    zeros = _zeros(zero, bits, n, blocks, scale)
    weight = (numbers - zeros[..., None]) * scale.reshape(n, blocks, 1)
    return F.linear(a, weight.reshape(n, -1)[:, :k].to(a.dtype), bias)


def _matmul_bnb4(call: Call, a: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    """Blocks of all rows laid end to end; the first code of a byte is in the high bits."""
    k, n, block = (call.get(name) for name in ("K", "N", "block_size"))
    pairs = torch.stack([codes >> 4, codes & 15], -1).reshape(-1)[: n * k]
    table = torch.tensor(_CODEBOOKS[call.get("quant_type")], dtype=scale.dtype, device=codes.device)
    spread = scale.repeat_interleave(block)[: n * k]
    weight = (table[pairs.long()] * spread).reshape(n, k).to(a.dtype)
    return F.linear(a, weight) if call.get("transB", 1) else torch.matmul(a, weight)


def _gather_blocks(
    call: Call, table: Tensor, places: Tensor, scale: Tensor, zero: Tensor | None = None
) -> Tensor:
    """Rows of a table [rows, ...] whose last axis is cut into blocks."""
    bits, block = call.get("bits", 4), call.get("block_size", 128)
    axis, along = call.get("gather_axis", 0), call.get("quantize_axis", 1) % table.ndim
    if along != table.ndim - 1 or axis % table.ndim:
        raise InputError(f"{call.label}: only rows whose last axis is cut into blocks are known")
    index = places.long()
    packed = call.type_of(0) is ir.DataType.UINT8
    rows = table[index]
    numbers = (unpacked(rows, bits) if packed else rows).to(scale.dtype)
    scales = scale[index].repeat_interleave(block, -1)[..., : numbers.shape[-1]]
    if zero is None:
        middle = 2 ** (bits - 1) if packed else 0
        return (numbers - middle) * scales
    zeros = unpacked(zero[index], bits) if packed else zero[index]
    zeros = zeros.to(scale.dtype).repeat_interleave(block, -1)[..., : numbers.shape[-1]]
    return (numbers - zeros) * scales


_MS = "com.microsoft"

TABLE: Table = {
    (_MS, "GatherBlockQuantized"): Operation(
        _gather_blocks, fixed=(2,), codes=(0,), packed=True, scale=2
    ),
    (_MS, "MatMulBnb4"): Operation(_matmul_bnb4, fixed=(2,)),
    (_MS, "MatMulNBits"): Operation(_matmul_nbits, fixed=(2, 3), codes=(1,), packed=True, scale=2),
}
