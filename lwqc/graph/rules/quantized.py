"""Quantized tensors: scales and zero points follow the axis they belong to."""

from __future__ import annotations

from lwqc.graph.axes import Factor, fixed, one, product
from lwqc.graph.repairs import Count
from lwqc.graph.rules.context import Context, Rule
from lwqc.graph.rules.fit import BarrierError, Dims, pairs
from lwqc.graph.rules.linear import matmul

_BLOCK = "a quantization block stays whole"


def linear(ctx: Context) -> None:
    """QuantizeLinear, DequantizeLinear: per tensor, per axis or in blocks of `block_size`."""
    dims = Dims(ctx.dims())
    block = ctx.integer("block_size", 0)
    for operand in (1, 2):
        if ctx.has(operand):
            _follow(ctx, dims, ctx.dims(operand), block)
    ctx.give(dims)


def _follow(ctx: Context, dims: Dims, scale: Dims, block: int) -> None:
    axis = ctx.axis(1, len(dims)) if dims else 0
    if len(scale) == 1 and len(dims) >= 1 and not block:
        ctx.unify(scale[0], dims[axis])
    elif block and len(scale) == len(dims):
        for a, (d, s) in enumerate(pairs(dims, scale)):
            if a != axis:
                ctx.unify(d, s)
            elif s.size * block == d.size:
                ctx.unify(d, product((s, fixed(block, _BLOCK))))
            else:
                ctx.freeze([d, s], _BLOCK)


def dynamic_quantize(ctx: Context) -> None:
    """The range is taken over the whole tensor."""
    dims = Dims(ctx.dims())
    ctx.statistics(dims)
    ctx.give(dims)
    ctx.give([], 1)
    ctx.give([], 2)


def matmul_nbits(ctx: Context) -> None:
    """com.microsoft.MatMulNBits: rows N are free, K is packed in blocks."""
    if ctx.integer("weight_prepacked", 0):
        raise BarrierError("its weight is packed for one kernel")
    data, weight = ctx.dims(0), ctx.dims(1)
    rows = weight[0]
    ctx.freeze([data[-1], *weight[1:]], "packed in blocks along this axis")
    for operand in (2, 3, 5):
        if ctx.has(operand):
            _rows(ctx, ctx.dims(operand), rows)
    if ctx.has(4):
        ctx.freeze(ctx.dims(4), "reordered groups")
    ctx.repairs.append(Count(ctx.node, "N", rows))
    ctx.give([*data[:-1], rows])


def _rows(ctx: Context, dims: Dims, rows: Factor) -> None:
    if dims[0].size == rows.size:
        ctx.unify(dims[0], rows)
        ctx.freeze(dims[1:], _BLOCK)
    elif rows.size and dims[0].size % rows.size == 0:
        per_row = fixed(dims[0].size // rows.size, _BLOCK)
        ctx.unify(dims[0], product((rows, per_row)))
    else:
        ctx.freeze([*dims, rows], _BLOCK)


def matmul_integer_to_float(ctx: Context) -> None:
    """com.microsoft.MatMulIntegerToFloat: B's scale, zero point and the bias follow its columns."""
    matmul(ctx)
    columns = ctx.outputs[0][-1]
    for operand in (3, 5, 6):
        if ctx.has(operand) and ctx.dims(operand):
            ctx.unify(ctx.dims(operand)[-1], columns)


def gather_block_quantized(ctx: Context) -> None:
    """com.microsoft.GatherBlockQuantized: rows are chosen by data, columns are packed."""
    table, ids = ctx.dims(0), ctx.dims(1)
    ctx.freeze(table, "a quantized table")
    for operand in (2, 3):
        if ctx.has(operand):
            ctx.freeze(ctx.dims(operand), "a quantized table")
    width = ctx.output_sizes()[-1]
    ctx.give([*ids, ctx.fixed(width, "a quantized table") if width > 1 else one()])


RULES: dict[tuple[str, str], Rule] = {
    ("", "QuantizeLinear"): linear,
    ("", "DequantizeLinear"): linear,
    ("com.microsoft", "QuantizeLinear"): linear,
    ("com.microsoft", "DequantizeLinear"): linear,
    ("", "DynamicQuantizeLinear"): dynamic_quantize,
    ("com.microsoft", "MatMulNBits"): matmul_nbits,
    ("com.microsoft", "MatMulIntegerToFloat"): matmul_integer_to_float,
    ("com.microsoft", "GatherBlockQuantized"): gather_block_quantized,
}
