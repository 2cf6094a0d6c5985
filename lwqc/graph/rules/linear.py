"""Matrix products, convolutions and pooling."""

from __future__ import annotations

from collections.abc import Sequence

from lwqc.graph.axes import Factor, freeze, is_free, mark
from lwqc.graph.repairs import Count
from lwqc.graph.rules.context import Context, Rule
from lwqc.graph.rules.fit import BarrierError, Dims, Fit, pairs, share
from lwqc.model.weights import stored_tensor

HEADS = "heads"
HEAD_DIM = "head dims"
CONV_GROUPS = "convolution groups"


def matmul(ctx: Context) -> None:
    """…mk, …kn → …mn; contracted and batch dimensions are the same indices."""
    if ctx.integer("transBatchA", 0) or ctx.integer("transBatchB", 0):
        raise BarrierError("a transposed batch dimension")
    a, b = Dims(ctx.dims(0)), Dims(ctx.dims(1))
    if ctx.integer("transA", 0) and len(a) > 1:  # com.microsoft.FusedMatMul
        a[-2:] = a[-1], a[-2]
    if ctx.integer("transB", 0) and len(b) > 1:
        b[-2:] = b[-1], b[-2]
    ctx.unify(a[-1], b[-2] if len(b) > 1 else b[0])
    batch = ctx.broadcast(a[:-2], b[:-2]) if len(a) > 2 or len(b) > 2 else []
    if len(a) > 2 and len(b) > 2 and not _stored(ctx):
        _mark_heads(batch, a[-1])
    rows = [a[-2]] if len(a) > 1 else []
    columns = [b[-1]] if len(b) > 1 else []
    ctx.give([*batch, *rows, *columns])


def _stored(ctx: Context) -> bool:
    return any(stored_tensor(v) is not None for v in ctx.node.inputs[:2])


def _mark_heads(batch: Sequence[Factor], contracted: Factor) -> None:
    for factor in batch:
        if is_free(factor):
            mark(factor, HEADS)
    if is_free(contracted):
        mark(contracted, HEAD_DIM)


def gemm(ctx: Context) -> None:
    """Matrix product of two matrices, each maybe transposed, plus a bias that broadcasts."""
    a, b = Dims(ctx.dims(0)), Dims(ctx.dims(1))
    a = a[::-1] if ctx.integer("transA", 0) else a
    b = b[::-1] if ctx.integer("transB", 0) else b
    ctx.unify(a[1], b[0])
    result = [a[0], b[1]]
    if ctx.has(2):
        ctx.broadcast(result, ctx.dims(2))
    ctx.give(result)


def matmul_integer(ctx: Context) -> None:
    """MatMul of codes; zero points per column follow the columns."""
    if ctx.has(2) and any(d.size > 1 for d in ctx.dims(2)):
        raise BarrierError("a zero point per row")
    matmul(ctx)
    if ctx.has(3) and ctx.dims(3):
        ctx.unify(ctx.dims(3)[-1], ctx.outputs[0][-1])


def einsum(ctx: Context) -> None:
    """One dimension per letter; `...` and repeated letters within an operand are barriers."""
    equation = ctx.text("equation", "").replace(" ", "")
    operands, arrow, result = equation.partition("->")
    terms = operands.split(",")
    if "." in equation:
        raise BarrierError("its equation has an ellipsis")
    if not arrow:
        result = "".join(sorted(c for c in set(operands) - {","} if operands.count(c) == 1))
    letters: dict[str, Factor] = {}
    for index, term in enumerate(terms):
        if len(set(term)) != len(term):
            raise BarrierError("its equation takes a diagonal")
        for letter, dim in pairs(term, ctx.dims(index)):
            known = letters.setdefault(letter, dim)
            if known is not dim:
                ctx.unify(known, dim)
            if known.size == 1:
                letters[letter] = dim
    if not letters.keys() >= set(result):
        raise BarrierError("its equation makes up a letter")
    ctx.give([letters[letter] for letter in result])


def _window(ctx: Context, name: str, spatial: int, default: int) -> Fit[int]:
    return ctx.integers_attribute(name) or Fit([default] * spatial)


def _pointwise(ctx: Context, spatial: int, kernel: Sequence[int]) -> list[bool]:
    """Spatial axes through which every index passes on its own."""
    strides = _window(ctx, "strides", spatial, 1)
    pads = _window(ctx, "pads", 2 * spatial, 0)
    return [
        kernel[i] == 1 and strides[i] == 1 and pads[i] == pads[spatial + i] == 0
        for i in range(spatial)
    ]


def _through(ctx: Context, dims: Dims, kernel: Sequence[int]) -> Dims:
    """Spatial output dimensions: kept where the kernel is 1 and unpadded, else fixed."""
    spatial = len(dims) - 2
    reason = "a kernel, stride or padding runs along this axis"
    result = Dims()
    passes = _pointwise(ctx, spatial, kernel)
    for axis, (dim, size) in enumerate(pairs(dims[2:], ctx.output_sizes()[2:])):
        if passes[axis]:
            result.append(dim)
        else:
            ctx.freeze([dim], reason)
            result.append(ctx.fixed(size, reason))
    return result


def conv(ctx: Context) -> None:
    """X.c = g·i, W = [g·o, i, ...], Y.c = g·o."""
    data, weight = ctx.dims(0), ctx.dims(1)
    groups = ctx.integer("group", 1)
    group, channel = _grouped(ctx, groups, data[1], weight[0])
    ctx.unify(channel, weight[1])
    for dim in weight[2:]:
        freeze(dim, "kernel axis of a convolution")
    if ctx.has(2):
        ctx.unify(ctx.dims(2)[0], weight[0])
    if groups > 1:
        ctx.repairs.append(Count(ctx.node, "group", group))
    kernel = Fit(d.size for d in weight[2:])
    ctx.give([data[0], weight[0], *_through(ctx, data, kernel)])


def _grouped(ctx: Context, groups: int, data: Factor, stacked: Factor) -> tuple[Factor, Factor]:
    """(groups, input channels of one group); `stacked` is groups times something of its own."""
    if groups == 1:
        return ctx.fresh(1), data
    group, channel = ctx.regroup([data], [groups, share(data.size, groups)])
    first, _ = ctx.regroup([stacked], [groups, share(stacked.size, groups)])
    ctx.unify(group, first)
    mark(group, CONV_GROUPS)
    return group, channel


def conv_transpose(ctx: Context) -> None:
    """X.c = g·i, W = [g·i, o, ...], Y.c = g·o."""
    data, weight = ctx.dims(0), ctx.dims(1)
    groups = ctx.integer("group", 1)
    ctx.unify(data[1], weight[0])
    if groups > 1:
        group, _ = ctx.regroup([data[1]], [groups, share(data[1].size, groups)])
        mark(group, CONV_GROUPS)
        (out,) = ctx.regroup([group, weight[1]], [groups * weight[1].size])
        ctx.repairs.append(Count(ctx.node, "group", group))
    else:
        out = weight[1]
    for dim in weight[2:]:
        freeze(dim, "kernel axis of a convolution")
    if ctx.has(2):
        ctx.unify(ctx.dims(2)[0], out)
    kernel = Fit(d.size for d in weight[2:])
    ctx.give([data[0], out, *_through(ctx, data, kernel)])


def pool(ctx: Context) -> None:
    """Channels stay; spatial axes are fixed unless the window is 1."""
    dims = ctx.dims()
    kernel = ctx.integers_attribute("kernel_shape") or Fit([0] * (len(dims) - 2))
    spatial = _through(ctx, dims, kernel)
    ctx.give([*dims[:2], *spatial])
    if len(ctx.node.outputs) > 1:
        ctx.freeze(dims, "its second output holds positions in the whole tensor")
        ctx.barrier("its second output holds positions in the whole tensor")


RULES: dict[tuple[str, str], Rule] = {
    ("", "MatMul"): matmul,
    ("com.microsoft", "FusedMatMul"): matmul,
    ("", "MatMulInteger"): matmul_integer,
    ("", "Gemm"): gemm,
    ("", "Einsum"): einsum,
    ("", "Conv"): conv,
    ("", "ConvTranspose"): conv_transpose,
    ("", "MaxPool"): pool,
    ("", "AveragePool"): pool,
    ("", "LpPool"): pool,
}
