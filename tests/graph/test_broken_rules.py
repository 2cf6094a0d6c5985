"""Rules broken on purpose: an oracle must see each of them, and none with the rules as they are."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import cache, partial

import numpy as np
import onnx
import pytest

from lwqc.errors import LwqcError
from lwqc.graph.axes import Factor, product, split_sum, total
from lwqc.graph.groups import Group
from lwqc.graph.repairs import Bounds, Count, Indices, Pieces, ReportedShape, Sizes
from lwqc.graph.rules import RULES
from lwqc.graph.rules.context import Context, Rule, Rules
from lwqc.testing.oracles import Oracle, half
from tests.small_models import Small, groups_of

TOLERANCE = 1e-5  # rounding of these models stays below 1e-6
SEEN = 10 * TOLERANCE
Build = Callable[[Small], str]


# Models. Every one has free channels around the operator that a mutation breaks.


def conv_net(s: Small) -> str:
    x = s.op("Conv", s.input(2, 3, 6, 6), s.weight(8, 3, 3, 3), s.weight(8))
    return s.op("Conv", s.op("Relu", x), s.weight(4, 8, 3, 3), s.weight(4))


def grouped_net(s: Small) -> str:
    x = s.op("Relu", s.op("Conv", s.input(2, 3, 6, 6), s.weight(8, 3, 3, 3)))
    x = s.op("Relu", s.op("Conv", x, s.weight(12, 2, 3, 3), s.weight(12), group=4))
    return s.op("Conv", x, s.weight(4, 12, 1, 1))


def transposed_conv_net(s: Small) -> str:
    x = s.op("Relu", s.op("Conv", s.input(2, 3, 4, 4), s.weight(8, 3, 1, 1)))
    x = s.op("ConvTranspose", x, s.weight(8, 6, 2, 2), s.weight(12), group=2, strides=[2, 2])
    return s.op("Conv", s.op("Relu", x), s.weight(4, 12, 1, 1))


def norm_net(s: Small) -> str:
    x = s.op("Conv", s.input(2, 3, 4, 4), s.weight(8, 3, 1, 1))
    x = s.op("BatchNormalization", x, s.gains(8), s.weight(8), s.weight(8), s.gains(8))
    x = s.op("PRelu", x, s.weight(8, 1, 1))
    return s.op("Conv", x, s.weight(4, 8, 1, 1))


def group_norm_net(s: Small) -> str:
    x = s.op("Conv", s.input(2, 3, 4, 4), s.weight(8, 3, 1, 1))
    x = s.op("Reshape", x, s.ints(2, 4, -1))
    x = s.op("InstanceNormalization", x, s.gains(4), s.weight(4))
    x = s.op("Relu", s.op("Reshape", x, s.ints(2, 8, 4, 4)))
    return s.op("Conv", x, s.weight(4, 8, 1, 1))


def residual_net(s: Small) -> str:
    x = s.input(2, 5, 6)
    a, b = s.linear(x, 6, 8), s.linear(x, 6, 8)
    return s.linear(s.op("Relu", s.op("Add", a, s.op("Tanh", b))), 8, 4)


def square_net(s: Small) -> str:
    x = s.op("Transpose", s.linear(s.input(6, 6), 6, 6), perm=[1, 0])
    x = s.op("Transpose", s.op("Tanh", s.linear(x, 6, 6)), perm=[1, 0])
    return s.linear(x, 6, 4)


def concat_net(s: Small) -> str:
    x = s.input(2, 5, 6)
    joined = s.op("Concat", s.linear(x, 6, 4), s.op("Tanh", s.linear(x, 6, 4)), axis=2)
    return s.linear(s.op("Relu", joined), 8, 4)


def split_net(s: Small) -> str:
    x = s.linear(s.input(2, 5, 6), 6, 8)
    a, b = s.ops("Split", x, s.ints(4, 4), names=["a", "b"], axis=2)
    return s.op("Add", s.linear(a, 4, 4), s.linear(s.op("Tanh", b), 4, 4))


def slice_net(s: Small) -> str:
    x = s.linear(s.input(2, 5, 6), 6, 9)
    x = s.op("Slice", x, s.ints(2), s.ints(7), s.ints(2))
    return s.linear(s.op("Tanh", x), 5, 4)


def gather_net(s: Small) -> str:
    x = s.linear(s.input(2, 5, 6), 6, 9)
    x = s.op("Gather", x, s.ints(4, 5, 6, 7, 0, 1, 2), axis=2)
    return s.linear(s.op("Tanh", x), 7, 4)


def pad_net(s: Small) -> str:
    x = s.op("Pad", s.linear(s.input(2, 5, 6), 6, 8), s.ints(0, 0, 1, 0, 0, 3))
    return s.linear(s.op("Tanh", x), 12, 4)


def embedding_net(s: Small) -> str:
    x = s.op("Gather", s.weight(11, 8), s.given("ids", np.arange(10).reshape(2, 5)))
    x = s.op("LayerNormalization", x, s.gains(8), s.weight(8), axis=-1)
    return s.linear(s.op("Tanh", x), 8, 4)


def softmax_net(s: Small) -> str:
    x = s.op("Softmax", s.linear(s.input(2, 5, 6), 6, 8), axis=-1)
    return s.linear(x, 8, 4)


def mean_net(s: Small) -> str:
    x = s.linear(s.input(2, 5, 6), 6, 8)
    x = s.op("Sub", x, s.op("ReduceMean", x, s.ints(2)))
    return s.linear(s.op("Tanh", x), 8, 4)


def lstm_net(s: Small) -> str:
    x = s.linear(s.input(5, 2, 6), 6, 4)
    x = s.op("LSTM", x, s.weight(1, 16, 4), s.weight(1, 16, 4), s.weight(1, 32), hidden_size=4)
    return s.linear(s.op("Squeeze", x, s.ints(1)), 4, 3)


def einsum_net(s: Small) -> str:
    x = s.op("Einsum", s.input(2, 5, 6), s.weight(8, 6), equation="btd,fd->btf")
    return s.op("Einsum", s.op("Tanh", x), s.weight(8, 4), equation="btf,fg->btg")


def space_net(s: Small) -> str:
    x = s.op("Conv", s.input(2, 3, 4, 4), s.weight(16, 3, 1, 1))
    x = s.op("DepthToSpace", x, blocksize=2, mode="DCR")
    return s.op("Conv", s.op("Tanh", x), s.weight(4, 4, 1, 1))


def quantized_net(s: Small) -> str:
    codes = s.rng.integers(-90, 90, (6, 8)).astype(np.int8)
    w = s.op("DequantizeLinear", s.keep(codes), s.gains(8), axis=1)
    return s.linear(s.op("Tanh", s.op("MatMul", s.input(2, 5, 6), w)), 8, 4)


def tile_net(s: Small) -> str:
    x = s.op("Tile", s.linear(s.input(2, 5, 6), 6, 4), s.ints(1, 1, 3))
    return s.linear(s.op("Mul", s.op("Tanh", x), s.weight(12)), 12, 4)


def attention_net(s: Small) -> str:
    """Grouped queries: 6 heads of 6, 2 of keys and values; the scale comes from Shape."""
    x = s.input(2, 5, 6)
    q, k, v = _heads(s, s.linear(x, 6, 36), 6), *(_expanded(s, x) for _ in "kv")
    size = s.op("Gather", s.op("Shape", q), s.ints(3))
    scale = s.op("Sqrt", s.op("Cast", size, to=onnx.TensorProto.FLOAT))
    keys = s.op("Transpose", k, perm=[0, 1, 3, 2])
    scores = s.op("Softmax", s.op("Div", s.op("MatMul", q, keys), scale), axis=-1)
    mixed = s.op("Transpose", s.op("MatMul", scores, v), perm=[0, 2, 1, 3])
    return s.linear(s.op("Reshape", mixed, s.ints(2, 5, 36)), 36, 4)


def _heads(s: Small, x: str, heads: int) -> str:
    return s.op("Transpose", s.op("Reshape", x, s.ints(2, 5, heads, 6)), perm=[0, 2, 1, 3])


def _expanded(s: Small, x: str) -> str:
    few = s.op("Unsqueeze", _heads(s, s.linear(x, 6, 12), 2), s.ints(2))
    many = s.op("Expand", few, s.ints(2, 2, 3, 5, 6))
    return s.op("Reshape", many, s.ints(2, 6, 5, 6))


# Mutations.


def rule_of(op: str) -> Rule:
    return RULES["", op]


def decoupled(op: str, operand: int) -> Rule:
    """An operand's dimensions are others than those of the tensor."""

    def rule(ctx: Context) -> None:
        inputs = list(ctx.inputs)
        inputs[operand] = [ctx.fresh(d.size) for d in inputs[operand] or ()]
        rule_of(op)(dataclasses.replace(ctx, inputs=inputs))

    return rule


def without(op: str, repair: type) -> Rule:
    """Something that repeats a size is not rewritten."""

    def rule(ctx: Context) -> None:
        rule_of(op)(ctx)
        ctx.repairs[:] = [r for r in ctx.repairs if not isinstance(r, repair)]

    return rule


def unmarked(op: str) -> Rule:
    """Groups seem to be independent of each other."""

    def silent(factors: Sequence[Factor]) -> None:
        pass

    def rule(ctx: Context) -> None:
        ctx.statistics = silent  # type: ignore[method-assign]
        rule_of(op)(ctx)

    return rule


def unpermuted(ctx: Context) -> None:
    ctx.give(list(ctx.dims()))


def concat_backwards(ctx: Context) -> None:
    operands = ctx.every()
    ctx.give([*operands[0][:-1], total(dims[-1] for dims in reversed(operands))])


def split_swapped(ctx: Context) -> None:
    dims = ctx.dims()
    pieces = split_sum(dims[-1], dims[-1].size // 2)
    for index, piece in enumerate(reversed(pieces)):
        ctx.give([*dims[:-1], piece], index)
    ctx.repairs.append(Pieces(ctx.node, pieces))


def conv_without_blocks(ctx: Context) -> None:
    """Grouped convolution whose output groups are not its input groups."""
    data, weight = ctx.dims(0), ctx.dims(1)
    groups = ctx.integer("group", 1)
    _, channel = ctx.regroup([data[1]], [groups, data[1].size // groups])
    ctx.unify(channel, weight[1])
    ctx.freeze(weight[2:], "kernel axis")
    if ctx.has(2):
        ctx.unify(ctx.dims(2)[0], weight[0])
    spatial = [ctx.fixed(size, "space") for size in ctx.output_sizes()[2:]]
    ctx.give([data[0], weight[0], *spatial])


def conv_transpose_of_one_group(ctx: Context) -> None:
    data, weight = ctx.dims(0), ctx.dims(1)
    ctx.unify(data[1], weight[0])
    out = ctx.dims(2)[0]
    ctx.give([data[0], out, *(ctx.fixed(n, "space") for n in ctx.output_sizes()[2:])])


def opaque(ctx: Context) -> None:
    """A reshape that only knows the dimensions that keep their place."""
    dims, wanted = ctx.dims(), ctx.output_sizes()
    same = [d if d.size == n else ctx.fresh(n) for d, n in zip(dims, wanted, strict=False)]
    result = [*same, *(ctx.fresh(n) for n in wanted[len(dims) :])]
    ctx.repairs.append(Sizes(ctx.node, 1, tuple(enumerate(result))))
    ctx.give(result)


def merged_backwards(ctx: Context) -> None:
    """A reshape that takes the two dimensions it merges in the wrong order."""
    rule_of("Reshape")(ctx)
    dims, wanted = ctx.dims(), ctx.output_sizes()
    if len(dims) == 5 and len(wanted) == 4:
        merged = product((dims[2], dims[1]))
        ctx.give([ctx.outputs[0][0], merged, *ctx.outputs[0][2:]])
        ctx.repairs[:] = [Sizes(ctx.node, 1, tuple(enumerate(ctx.outputs[0])))]


def all_new(ctx: Context) -> None:
    """An Expand that keeps nothing of its operand."""
    ctx.give([ctx.fresh(n) for n in ctx.output_sizes()])
    ctx.repairs.append(Sizes(ctx.node, 1, tuple(enumerate(ctx.outputs[0]))))


def matmul_of_other_batches(ctx: Context) -> None:
    """A product whose batch dimensions, the heads, are those of its first operand only."""
    a, b = ctx.dims(0), ctx.dims(1)
    ctx.unify(a[-1], b[-2])
    ctx.give([*a[:-1], b[-1]])


def gates_last(ctx: Context) -> None:
    """An LSTM whose weights hold the gates of one unit next to each other."""
    data, w, r = ctx.dims(0), ctx.dims(1), ctx.dims(2)
    hidden = r[2]
    for dim, count in ((w[1], 4), (r[1], 4), (ctx.dims(3)[1], 8)):
        ctx.unify(dim, product((hidden, ctx.fixed(count, "gates"))))
    ctx.unify(data[2], w[2])
    ctx.give([data[0], ctx.fresh(1), data[1], hidden])
    ctx.repairs.append(Count(ctx.node, "hidden_size", hidden))


def pad_other_side(ctx: Context) -> None:
    dims = ctx.dims()
    ends = ctx.fixed(3, "padding"), ctx.fixed(1, "padding")
    ctx.give([*dims[:-1], total((ends[0], dims[-1], ends[1]))])


def cells_first(ctx: Context) -> None:
    """DepthToSpace that takes DCR for CRD."""
    batch, channel, *space = ctx.dims()
    out, cells = ctx.regroup([channel], [channel.size // 4, 4])
    ctx.freeze([cells], "space")
    ctx.give([batch, out, *(ctx.fixed(2 * d.size, "space") for d in space)])


def tile_backwards(ctx: Context) -> None:
    """Repetitions as the inner part."""
    dims = ctx.dims()
    times = ctx.fixed(3, "repetitions")
    ctx.give([*dims[:-1], product((dims[-1], times))])


MUTATIONS: dict[str, tuple[Build, dict[str, Rule], str]] = {
    "the bias of a Conv is not coupled": (conv_net, {"Conv": decoupled("Conv", 2)}, "permutation"),
    "the input channels of a Conv": (conv_net, {"Conv": decoupled("Conv", 0)}, "permutation"),
    "the blocks of a grouped Conv": (grouped_net, {"Conv": conv_without_blocks}, "permutation"),
    "the attribute group": (grouped_net, {"Conv": without("Conv", Count)}, "zeroed"),
    "the groups of a ConvTranspose": (
        transposed_conv_net,
        {"ConvTranspose": conv_transpose_of_one_group},
        "permutation",
    ),
    "the mean of a BatchNormalization": (
        norm_net,
        {"BatchNormalization": decoupled("BatchNormalization", 3)},
        "permutation",
    ),
    "the slope of a PRelu": (norm_net, {"PRelu": decoupled("PRelu", 1)}, "permutation"),
    "the statistics of an InstanceNormalization": (
        group_norm_net,
        {"InstanceNormalization": unmarked("InstanceNormalization")},
        "zeroed",
    ),
    "the second operand of an Add": (residual_net, {"Add": decoupled("Add", 1)}, "permutation"),
    "the order of a Transpose": (square_net, {"Transpose": unpermuted}, "permutation"),
    "the contracted dimension of a MatMul": (
        residual_net,
        {"MatMul": decoupled("MatMul", 0)},
        "permutation",
    ),
    "the order of a Concat": (concat_net, {"Concat": concat_backwards}, "permutation"),
    "the order of a Split": (split_net, {"Split": split_swapped}, "permutation"),
    "the sizes of a Split": (split_net, {"Split": without("Split", Pieces)}, "zeroed"),
    "the bounds of a Slice": (slice_net, {"Slice": without("Slice", Bounds)}, "zeroed"),
    "the indices of a Gather": (gather_net, {"Gather": without("Gather", Indices)}, "zeroed"),
    "the width of an embedding table": (
        embedding_net,
        {"Gather": decoupled("Gather", 0)},
        "permutation",
    ),
    "the statistics of a LayerNormalization": (
        embedding_net,
        {"LayerNormalization": unmarked("LayerNormalization")},
        "zeroed",
    ),
    "the statistics of a Softmax": (softmax_net, {"Softmax": unmarked("Softmax")}, "zeroed"),
    "the statistics of a mean": (mean_net, {"ReduceMean": unmarked("ReduceMean")}, "zeroed"),
    "the side of a Pad": (pad_net, {"Pad": pad_other_side}, "permutation"),
    "the gates of an LSTM": (lstm_net, {"LSTM": gates_last}, "permutation"),
    "the attribute hidden_size": (lstm_net, {"LSTM": without("LSTM", Count)}, "zeroed"),
    "the letters of an Einsum": (einsum_net, {"Einsum": decoupled("Einsum", 0)}, "permutation"),
    "the mode of a DepthToSpace": (space_net, {"DepthToSpace": cells_first}, "permutation"),
    "the scale of a DequantizeLinear": (
        quantized_net,
        {"DequantizeLinear": decoupled("DequantizeLinear", 1)},
        "permutation",
    ),
    "the order of a Tile": (tile_net, {"Tile": tile_backwards}, "permutation"),
    "the split of a Reshape": (attention_net, {"Reshape": opaque}, "permutation"),
    "the order of a merging Reshape": (
        attention_net,
        {"Reshape": merged_backwards},
        "permutation",
    ),
    "the target of a Reshape": (attention_net, {"Reshape": without("Reshape", Sizes)}, "zeroed"),
    "what an Expand passes on": (attention_net, {"Expand": all_new}, "permutation"),
    "the sizes of an Expand": (attention_net, {"Expand": without("Expand", Sizes)}, "zeroed"),
    "the heads of a product": (attention_net, {"MatMul": matmul_of_other_batches}, "permutation"),
    "the size that a Shape reported": (
        attention_net,
        {"Shape": without("Shape", ReportedShape)},
        "zeroed",
    ),
}


def failing(build: Build, rules: Rules) -> set[str]:
    """The oracles that see an error, or in whose run the pruned model breaks."""
    small = Small()
    model, groups = groups_of(small, build(small), rules=rules)
    assert not groups.barriers
    assert len(groups) > 0
    oracle = Oracle(model, groups, small.feeds, tolerance=TOLERANCE, rules=rules)
    plain = [g for g in groups if not g.statistics]
    errors: dict[str, list[Callable[[], float]]] = {
        "permutation": [lambda: oracle.permutation(groups)],
        "zeroed": [partial(removal, oracle, plain, seed) for seed in range(3)],
        "commutation": [lambda: oracle.commutation(list(groups), oracle.possible(half(groups)))],
    }
    return {name for name, trials in errors.items() if any(error(t) > SEEN for t in trials)}


def removal(oracle: Oracle, groups: Sequence[Group], seed: int) -> float:
    return oracle.zeroed_is_removed(oracle.possible(half(groups, seed)))


def error(trial: Callable[[], float]) -> float:
    """A model that no longer loads or runs is as wrong as can be."""
    try:
        return trial()
    except LwqcError:
        return float("inf")


@cache
def healthy(build: Build) -> set[str]:
    return failing(build, RULES)


@pytest.mark.parametrize("name", MUTATIONS)
def test_an_oracle_sees_what_a_rule_forgets(name: str) -> None:
    build, changes, seen_by = MUTATIONS[name]
    assert healthy(build) == set()
    rules = {**RULES, **{("", op): rule for op, rule in changes.items()}}
    assert seen_by in failing(build, rules)
