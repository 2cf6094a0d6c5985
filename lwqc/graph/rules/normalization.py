"""Normalisation, softmax and reductions."""

from __future__ import annotations

from lwqc.graph.axes import Factor, unify
from lwqc.graph.mixtures import tables_chosen
from lwqc.graph.repairs import AtLeast, Count
from lwqc.graph.rules.context import Context, Rule
from lwqc.graph.rules.fit import Dims, share


def batch_norm(ctx: Context) -> None:
    """Per channel, with stored statistics: nothing else changes when a channel goes."""
    dims = Dims(ctx.dims())
    for operand in range(1, 5):
        ctx.unify(dims[1], ctx.dims(operand)[0])
    ctx.give(dims)
    for output in range(1, len(ctx.node.outputs)):
        ctx.give([dims[1]], output)


def instance_norm(ctx: Context) -> None:
    """Statistics over the spatial axes of each channel."""
    dims = Dims(ctx.dims())
    for operand in (1, 2):
        ctx.unify(dims[1], ctx.dims(operand)[0])
    ctx.statistics(dims[2:])
    ctx.give(dims)


def group_norm(ctx: Context) -> None:
    """Channels are groups x members; statistics over members and space."""
    dims = Dims(ctx.dims())
    groups = ctx.integer("num_groups", 1)
    group, member = ctx.regroup([dims[1]], [groups, share(dims[1].size, groups)])
    ctx.statistics([member, *dims[2:]])
    for operand in (1, 2):
        scale = ctx.dims(operand)[0]
        ctx.unify(scale, dims[1] if scale.size == dims[1].size else group)
    ctx.repairs.append(Count(ctx.node, "num_groups", group))
    ctx.give(dims)


def contrib_group_norm(ctx: Context) -> None:
    """com.microsoft.GroupNorm: channels last by default."""
    dims = Dims(ctx.dims())
    channel = dims[-1] if ctx.integer("channels_last", 1) else dims[1]
    groups = ctx.integer("groups", 1)
    group, member = ctx.regroup([channel], [groups, share(channel.size, groups)])
    ctx.statistics([member, *(d for d in dims[1:] if d is not channel)])
    for operand in (1, 2):
        ctx.unify(ctx.dims(operand)[0], channel)
    ctx.repairs.append(Count(ctx.node, "groups", group))
    ctx.give(dims)


def layer_norm(ctx: Context) -> None:
    """Statistics over the axes from `axis` on; scale and bias belong to them."""
    dims = Dims(ctx.dims())
    axis = ctx.axis(-1)
    ctx.statistics(dims[axis:])
    for operand in (1, 2):
        if ctx.has(operand):
            ctx.broadcast(dims, ctx.dims(operand))
    ctx.give(dims)
    for output in range(1, len(ctx.node.outputs)):
        ctx.give([*dims[:axis], *(ctx.fresh(1) for _ in dims[axis:])], output)


def skip_layer_norm(ctx: Context) -> None:
    """com.microsoft: addition, optional bias and normalisation in one; output 3 is the sum."""
    dims = ctx.broadcast(ctx.dims(0), ctx.dims(1))
    for operand in range(2, len(ctx.inputs)):
        if ctx.has(operand):
            ctx.broadcast(dims, ctx.dims(operand))
    ctx.statistics(dims[-1:])
    ctx.give(dims)
    if len(ctx.node.outputs) > 3:
        ctx.give(list(dims), 3)


def softmax(ctx: Context) -> None:
    """Statistics over one axis; before opset 13 over it and all that follow."""
    dims = Dims(ctx.dims())
    old = ctx.opset < 13
    axis = ctx.axis(1 if old else -1)
    ctx.statistics(dims[axis:] if old else [dims[axis]])
    ctx.give(dims)


def along_axis(ctx: Context) -> None:
    """LpNormalization: statistics over one axis."""
    dims = Dims(ctx.dims())
    ctx.statistics([dims[ctx.axis(-1)]])
    ctx.give(dims)


def mean_variance(ctx: Context) -> None:
    """MeanVarianceNormalization: statistics over the listed axes."""
    dims = Dims(ctx.dims())
    axes = ctx.integers_attribute("axes") or [0, 2, 3]
    ctx.statistics([dims[a] for a in axes])
    ctx.give(dims)


def neighbours(ctx: Context) -> None:
    """LRN: each channel looks at those beside it."""
    dims = Dims(ctx.dims())
    ctx.freeze([dims[1]], "each channel looks at its neighbours")
    ctx.give(dims)


def _reduce(ctx: Context, *, mixes: bool) -> None:
    dims = ctx.dims()
    axes = ctx.axes(1, len(dims))
    if not axes:
        axes = [] if ctx.integer("noop_with_empty_axes", 0) else list(range(len(dims)))
    if mixes:
        ctx.statistics([dims[a] for a in axes])
    keep = bool(ctx.integer("keepdims", 1))
    ctx.give(
        [ctx.fresh(1) if a in axes else d for a, d in enumerate(dims) if keep or a not in axes]
    )


def reduce_statistics(ctx: Context) -> None:
    """Mean, maximum and the like: another result without the removed index."""
    _reduce(ctx, mixes=True)


def reduce_sum(ctx: Context) -> None:
    """Sums: a removed index counts as zero, except of functions that are not zero at zero."""
    data = ctx.node.inputs[0]
    producer = data.producer() if data is not None else None
    _reduce(ctx, mixes=producer is not None and producer.op_type in _NOT_ZERO_AT_ZERO)


def global_pool(ctx: Context) -> None:
    """All spatial axes become 1."""
    dims = ctx.dims()
    ctx.statistics(dims[2:])
    ctx.give([*dims[:2], *(ctx.fresh(1) for _ in dims[2:])])


def looks_at_values(ctx: Context) -> None:
    """ArgMax, ArgMin: the result is a position along the axis."""
    dims = ctx.dims()
    axis = ctx.axis(0)
    ctx.freeze([dims[axis]], "its result is a position along this axis")
    keep = bool(ctx.integer("keepdims", 1))
    ctx.give([ctx.fresh(1) if a == axis else d for a, d in enumerate(dims) if keep or a != axis])


def hard_max(ctx: Context) -> None:
    """Hardmax compares the indices of one axis; before opset 13 of all that follow it."""
    dims = Dims(ctx.dims())
    old = ctx.opset < 13
    axis = ctx.axis(1 if old else -1)
    ctx.freeze(dims[axis:] if old else [dims[axis]], "compares the indices of this axis")
    ctx.give(dims)


def top_k(ctx: Context) -> None:
    """TopK: sorts along the axis. Experts that it chooses can go with their rows of tables."""
    dims = Dims(ctx.dims())
    axis = ctx.axis(-1)
    least = ctx.static(1)
    if least is not None and tables_chosen(ctx.node, dims[axis].size):
        ctx.statistics([dims[axis]])
        ctx.places[ctx.node.outputs[1]] = dims[axis]
        ctx.repairs.append(AtLeast(ctx.node, int(least.ravel()[0]), dims[axis]))
    else:
        ctx.freeze([dims[axis]], "sorts along this axis")
    sizes = ctx.output_sizes()
    found: list[Factor] = list(dims)
    found[axis] = ctx.fixed(sizes[axis], "sorts along this axis")
    ctx.give(found)
    ctx.give(list(found), 1)


def joined(ctx: Context) -> None:
    """com.microsoft.EmbedLayerNormalization: three tables added and normalised."""
    ids = ctx.dims(0)
    tables = [ctx.dims(i) for i in (2, 3, 4) if ctx.has(i)]
    for table in tables:
        ctx.freeze(table[:1], "rows are chosen by data")
        unify(tables[0][1], table[1], ctx.where)
    hidden = tables[0][1]
    for operand in (5, 6):
        if ctx.has(operand):
            ctx.unify(ctx.dims(operand)[0], hidden)
    ctx.statistics([hidden])
    ctx.give([*ids, hidden])
    if len(ctx.node.outputs) > 1:
        ctx.give([ctx.fixed(ids[0].size, "batch")], 1)
    if len(ctx.node.outputs) > 2:
        ctx.give([*ids, hidden], 2)


_STATISTICS_REDUCTIONS = "ReduceMean ReduceMax ReduceMin ReduceProd ReduceLogSum ReduceLogSumExp"
_NOT_ZERO_AT_ZERO = {"Exp", "Sigmoid", "HardSigmoid", "Softplus", "Cos", "Cosh", "Not"}
_SUMS = "ReduceSum ReduceSumSquare ReduceL1 ReduceL2"

RULES: dict[tuple[str, str], Rule] = {
    ("", "BatchNormalization"): batch_norm,
    ("", "InstanceNormalization"): instance_norm,
    ("", "GroupNormalization"): group_norm,
    ("com.microsoft", "GroupNorm"): contrib_group_norm,
    ("", "LayerNormalization"): layer_norm,
    ("", "RMSNormalization"): layer_norm,
    ("", "SimplifiedLayerNormalization"): layer_norm,
    ("com.microsoft", "SkipLayerNormalization"): skip_layer_norm,
    ("com.microsoft", "SkipSimplifiedLayerNormalization"): skip_layer_norm,
    ("com.microsoft", "EmbedLayerNormalization"): joined,
    ("", "Softmax"): softmax,
    ("", "LogSoftmax"): softmax,
    ("", "Hardmax"): hard_max,
    ("", "LpNormalization"): along_axis,
    ("", "MeanVarianceNormalization"): mean_variance,
    ("", "LRN"): neighbours,
    **{("", op): reduce_statistics for op in _STATISTICS_REDUCTIONS.split()},
    **{("", op): reduce_sum for op in _SUMS.split()},
    ("", "GlobalAveragePool"): global_pool,
    ("", "GlobalMaxPool"): global_pool,
    ("", "GlobalLpPool"): global_pool,
    ("", "ArgMax"): looks_at_values,
    ("", "ArgMin"): looks_at_values,
    ("", "TopK"): top_k,
}
