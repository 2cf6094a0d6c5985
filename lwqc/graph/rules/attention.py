"""Fused attention: heads and head dimensions inside one operator."""

from __future__ import annotations

import math

from lwqc.graph.axes import Factor, fixed, mark, product, total
from lwqc.graph.repairs import Count, Pinned, Sizes
from lwqc.graph.rules.context import Context, Rule
from lwqc.graph.rules.fit import BarrierError, Dims, Fit, share
from lwqc.graph.rules.linear import HEAD_DIM, HEADS

_PAIRS = "rotary embedding pairs its indices"


def _heads(ctx: Context, hidden: Factor, count: int) -> tuple[Factor, Factor]:
    heads, dim = ctx.regroup([hidden], [count, share(hidden.size, count)])
    mark(heads, HEADS)
    mark(dim, HEAD_DIM)
    return heads, dim


def _pin_scale(ctx: Context, dim: Factor) -> None:
    if ctx.number("scale", 0.0) == 0.0:
        ctx.repairs.append(Pinned(ctx.node, "scale", 1 / math.sqrt(dim.size), dim))


def _bias(ctx: Context, operand: int, heads: Factor) -> None:
    """An attention bias or mask, aligned to the right with [B, heads or 1, S, T]."""
    if ctx.has(operand):
        dims = ctx.dims(operand)
        if len(dims) > 2:
            ctx.unify(dims[-3], heads)
        ctx.freeze([*dims[:-3], *dims[-2:]], "sequence axis")


def multi_head(ctx: Context) -> None:
    """com.microsoft.MultiHeadAttention with separate query, key, value [B, S, h·d]."""
    query = ctx.dims(0)
    if not (ctx.has(1) and ctx.has(2)) or any(len(ctx.dims(i)) != 3 for i in (0, 1, 2)):
        raise BarrierError("packed query, key and value")
    key, value = ctx.dims(1), ctx.dims(2)
    count = ctx.integer("num_heads", 1)
    heads, dim = _heads(ctx, query[2], count)
    ctx.unify(query[2], key[2])
    value_heads, value_dim = _heads(ctx, value[2], count)
    ctx.unify(heads, value_heads)
    if ctx.has(3):
        stacked = total((product((heads, dim)), product((heads, dim)), value[2]))
        ctx.unify(ctx.dims(3)[0], stacked)
    _bias(ctx, 5, heads)
    for operand, size in ((6, dim), (7, value_dim)):
        if ctx.has(operand):
            past = ctx.dims(operand)
            ctx.unify(past[1], heads)
            ctx.unify(past[3], size)
    ctx.repairs.append(Count(ctx.node, "num_heads", heads))
    _pin_scale(ctx, dim)
    ctx.give([*query[:2], value[2]])
    _present(ctx, query[0], heads, (dim, value_dim))
    _scores(ctx, query[0], heads)


def _scores(ctx: Context, batch: Factor, heads: Factor) -> None:
    """The last output: what goes into or comes out of the softmax, [B, heads, S, T]."""
    if len(ctx.node.outputs) > 3:
        lengths = ctx.output_sizes(3)[2:]
        ctx.give([batch, heads, *(fixed(n, "sequence axis") for n in lengths)], 3)


def _present(ctx: Context, batch: Factor, heads: Factor, dims: tuple[Factor, Factor]) -> None:
    for output, dim in ((1, dims[0]), (2, dims[1])):
        if output < len(ctx.node.outputs) and ctx.node.outputs[output].name:
            length = ctx.output_sizes(output)[2]
            ctx.give([batch, heads, fixed(length, "sequence axis"), dim], output)


def packed(ctx: Context) -> None:
    """com.microsoft.Attention: one weight [D, q + k + v]."""
    data, weight = ctx.dims(0), ctx.dims(1)
    if any(ctx.has(i) for i in (4, 6)) or len(ctx.node.outputs) > 1:
        raise BarrierError("attention with a cache in one tensor")
    if ctx.integer("do_rotary", 0):
        raise BarrierError(_PAIRS)
    count = ctx.integer("num_heads", 1)
    widths = ctx.integers_attribute("qkv_hidden_sizes") or Fit([weight[1].size // 3] * 3)
    ctx.unify(data[2], weight[0])
    heads, dim = ctx.fresh(count), ctx.fresh(share(widths[0], count))
    value_dim = ctx.fresh(share(widths[2], count))
    parts = [product((heads, d)) for d in (dim, dim, value_dim)]
    ctx.unify(weight[1], total(parts))
    if ctx.has(2):
        ctx.unify(ctx.dims(2)[0], weight[1])
    _bias(ctx, 5, heads)
    mark(heads, HEADS)
    mark(dim, HEAD_DIM)
    ctx.repairs.append(Count(ctx.node, "num_heads", heads))
    ctx.repairs.append(Sizes(ctx.node, "qkv_hidden_sizes", tuple(enumerate(parts))))
    _pin_scale(ctx, dim)
    ctx.give([*data[:2], parts[2]])


def grouped_query(ctx: Context) -> None:
    """com.microsoft.GroupQueryAttention: query kv·rep·d, key and value kv·d; d stays whole."""
    if not (ctx.has(1) and ctx.has(2)):
        raise BarrierError("packed query, key and value")
    if any(ctx.has(i) for i in range(12, len(ctx.inputs))):
        raise BarrierError("attention with a quantized cache or normalised queries")
    query, key, value = ctx.dims(0), ctx.dims(1), ctx.dims(2)
    kv, count = ctx.integer("kv_num_heads", 1), ctx.integer("num_heads", 1)
    size = share(key[2].size, kv)
    groups, dim = _heads(ctx, key[2], kv)
    ctx.unify(value[2], product((groups, dim)))
    (heads,) = ctx.regroup([groups, ctx.fresh(share(count, kv))], [count])
    ctx.unify(query[2], product((heads, dim)))
    ctx.freeze([dim], "the fused operator accepts few head sizes")
    for operand in (3, 4):
        if ctx.has(operand):
            ctx.unify(ctx.dims(operand)[1], groups)
    _bias(ctx, 10, heads)
    if ctx.has(11):
        ctx.unify(ctx.dims(11)[0], heads)  # sinks
    ctx.repairs.append(Count(ctx.node, "num_heads", heads))
    ctx.repairs.append(Count(ctx.node, "kv_num_heads", groups))
    ctx.give([*query[:2], query[2]])
    fixed_dim = fixed(size, _PAIRS)
    _present(ctx, query[0], groups, (fixed_dim, fixed_dim))
    _scores(ctx, query[0], heads)


def attention(ctx: Context) -> None:
    """ONNX Attention (opset 23): [B, h, S, d] or [B, S, h·d], grouped queries, cache."""
    query, key, value = ctx.dims(0), ctx.dims(1), ctx.dims(2)
    if len(query) == 4:
        q_heads, dim = query[1], query[3]
        kv_heads, value_dim = key[1], value[3]
        ctx.unify(value[1], kv_heads)
        ctx.unify(key[3], dim)
    else:
        q_heads, dim = _heads(ctx, query[2], ctx.integer("q_num_heads", 1))
        kv = ctx.integer("kv_num_heads", 1)
        kv_heads, key_dim = _heads(ctx, key[2], kv)
        value_heads, value_dim = _heads(ctx, value[2], kv)
        ctx.unify(value_heads, kv_heads)
        ctx.unify(key_dim, dim)
        ctx.repairs.append(Count(ctx.node, "q_num_heads", q_heads))
        ctx.repairs.append(Count(ctx.node, "kv_num_heads", kv_heads))
    repeats = ctx.fresh(q_heads.size // max(kv_heads.size, 1))
    ctx.unify(q_heads, product((kv_heads, repeats)))
    _bias(ctx, 3, q_heads)
    for operand, size in ((4, dim), (5, value_dim)):
        if ctx.has(operand):
            past = ctx.dims(operand)
            ctx.unify(past[1], kv_heads)
            ctx.unify(past[3], size)
    _pin_scale(ctx, dim)
    if len(query) == 4:
        ctx.give([*query[:3], value_dim])
    else:
        ctx.give([*query[:2], product((q_heads, value_dim))])
    _present(ctx, query[0], kv_heads, (dim, value_dim))
    _scores(ctx, query[0], q_heads)


def rotary(ctx: Context) -> None:
    """RotaryEmbedding, both domains: heads pass, head dimensions are paired."""
    dims = Dims(ctx.dims())
    tables = (2, 3) if ctx.node.domain else (1, 2)
    for operand in tables:
        ctx.freeze(ctx.dims(operand), _PAIRS)
    if len(dims) == 3:
        count = ctx.integer("num_heads", 0)
        table = ctx.dims(tables[0])[-1].size
        size = share(dims[2].size, count) if count else 2 * table
        heads, dim = ctx.regroup([dims[2]], [share(dims[2].size, size), size])
        ctx.freeze([dim], _PAIRS)
        if count:
            ctx.repairs.append(Count(ctx.node, "num_heads", heads))
    else:
        ctx.freeze([dims[3]], _PAIRS)
        if ctx.integer("num_heads", 0):
            ctx.repairs.append(Count(ctx.node, "num_heads", dims[1]))
    ctx.give(dims)


RULES: dict[tuple[str, str], Rule] = {
    ("com.microsoft", "MultiHeadAttention"): multi_head,
    ("com.microsoft", "Attention"): packed,
    ("com.microsoft", "GroupQueryAttention"): grouped_query,
    ("", "Attention"): attention,
    ("com.microsoft", "RotaryEmbedding"): rotary,
    ("", "RotaryEmbedding"): rotary,
}
