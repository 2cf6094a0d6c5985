"""Steps that take tensors apart, reshape and resize them."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import strategies as st
from onnx import TensorProto

from lwqc.testing.random_graphs.growing import (
    WIDTHS,
    Graph,
    Tensor,
    choose,
    divisors,
    flag,
    some_axis,
    spatial,
    step,
)

# Parts of a tensor.


@step
def _split(g: Graph, draw: st.DrawFn) -> list[Tensor]:
    x = g.pick(draw)
    axis = some_axis(draw, x, 3)
    size, pieces = x.shape[axis], choose(draw, [2, 3])
    if size % pieces == 0 and flag(draw):
        return g.split(x, [size // pieces] * pieces, axis)
    cuts = [0, *choose(draw, [[1], [size // 2], [size // 3, size - 1]]), size]
    return g.split(x, np.diff(cuts).tolist(), axis)


@step
def _slice_run(g: Graph, draw: st.DrawFn) -> Tensor:
    x = g.pick(draw)
    axis = some_axis(draw, x, 3)
    start = choose(draw, range(x.shape[axis] - 1))
    return g.slice(x, [axis], [start], [choose(draw, range(start + 2, x.shape[axis] + 1))], 1)


@step
def _slice_strided(g: Graph, draw: st.DrawFn) -> Tensor:
    x = g.pick(draw)
    axis = some_axis(draw, x, 3)
    return g.slice(x, [axis], [choose(draw, [0, 1])], [x.shape[axis]], 2)


@step
def _gather_run(g: Graph, draw: st.DrawFn) -> Tensor:
    x = g.pick(draw)
    axis = some_axis(draw, x, 3)
    start = choose(draw, range(x.shape[axis] - 1))
    run = range(start, choose(draw, range(start + 2, x.shape[axis] + 1)))
    shape = [*x.shape[:axis], len(run), *x.shape[axis + 1 :]]
    return g.op("Gather", x, g.ints(list(run)), shape=shape, axis=axis)


@step
def _gather_scalar(g: Graph, draw: st.DrawFn) -> Tensor:
    x = g.pick(draw, 3, 4, 5)
    axis = choose(draw, range(len(x.shape)))
    index = g.ints(choose(draw, range(x.shape[axis])))
    return g.op("Gather", x, index, shape=[*x.shape[:axis], *x.shape[axis + 1 :]], axis=axis)


def _padded(g: Graph, x: Tensor, axis: int, before: int, after: int) -> Tensor:
    rank = len(x.shape)
    pads = np.zeros(2 * rank, np.int64)
    pads[[axis, rank + axis]] = before, after
    shape = [n + (before + after) * (a == axis) for a, n in enumerate(x.shape)]
    return g.op("Pad", x, g.constant(pads), shape=shape)


@step
def _pad_spatial(g: Graph, draw: st.DrawFn) -> Tensor:
    x = g.pick(draw, 3, 4)
    axis = choose(draw, [a for a in range(1, len(x.shape)) if a != x.channel])
    return _padded(g, x, axis, choose(draw, [0, 1]), 1)


@step
def _pad_channels(g: Graph, draw: st.DrawFn) -> Tensor:
    x = g.pick(draw)
    return _padded(g, x, x.channel, choose(draw, [0, 2]), choose(draw, [2, 4]))


# Shapes.


@step
def _split_axis(g: Graph, draw: st.DrawFn) -> Tensor:
    """Reshape that splits an axis, as into heads."""
    x = g.pick(draw, 2, 3, 4)
    axis = some_axis(draw, x)
    outer = choose(draw, divisors(x.shape[axis], (2, 3, 4)))
    return g.reshape(x, [*x.shape[:axis], outer, x.shape[axis] // outer, *x.shape[axis + 1 :]])


@step
def _merge_axes(g: Graph, draw: st.DrawFn) -> Tensor:
    x = g.pick(draw, 3, 4, 5)
    axis = choose(draw, range(1, len(x.shape) - 1))
    merged = x.shape[axis] * x.shape[axis + 1]
    return g.reshape(x, [*x.shape[:axis], merged, *x.shape[axis + 2 :]])


@step
def _channel_shuffle(g: Graph, draw: st.DrawFn) -> Tensor:
    x = g.pick(draw, 4)
    n, channels, *size = x.shape
    groups = choose(draw, divisors(channels, (2, 3, 4)))
    blocks = g.reshape(x, [n, groups, channels // groups, *size])
    return g.reshape(g.transpose(blocks, 0, 2, 1, 3, 4), x.shape)


@step
def _transpose(g: Graph, draw: st.DrawFn) -> Tensor:
    x = g.pick(draw, 3, 4, 5)
    return g.transpose(x, *draw(st.permutations(range(len(x.shape)))))


@step
def _tokens(g: Graph, draw: st.DrawFn) -> Tensor:
    """`[N, C, H, W] -> [N, H * W, C]`."""
    x = g.pick(draw, 4)
    flat = g.reshape(x, [*x.shape[:2], math.prod(x.shape[2:])])
    return g.transpose(flat, 0, 2, 1)


@step
def _squeeze(g: Graph, draw: st.DrawFn) -> Tensor:
    x = g.pick(draw, 3, 4, 5, fits=lambda t: 1 in t.shape)
    axis = choose(draw, [a for a, n in enumerate(x.shape) if n == 1])
    return g.op("Squeeze", x, g.ints([axis]), shape=[*x.shape[:axis], *x.shape[axis + 1 :]])


@step
def _unsqueeze(g: Graph, draw: st.DrawFn) -> Tensor:
    x = g.pick(draw, 2, 3, 4)
    axis = choose(draw, range(len(x.shape) + 1))
    return g.op("Unsqueeze", x, g.ints([axis]), shape=[*x.shape[:axis], 1, *x.shape[axis:]])


@step
def _flatten(g: Graph, draw: st.DrawFn) -> Tensor:
    x = g.pick(draw, 3, 4, 5)
    axis = choose(draw, range(1, len(x.shape)))
    return g.op(
        "Flatten", x, shape=[math.prod(x.shape[:axis]), math.prod(x.shape[axis:])], axis=axis
    )


@step
def _reshape_from_shape(g: Graph, draw: st.DrawFn) -> Tensor:
    """Split the last axis; the target is computed from `Shape(x)`."""
    x = g.pick(draw, 2, 3)
    heads = choose(draw, divisors(x.shape[-1], (2, 3, 4)))
    inner = g.ints([-1])
    if flag(draw):
        inner = g.op("Div", g.size(x, -1), g.ints([heads]), dtype=TensorProto.INT64)
    lead = [
        g.size(x, a) if a == 0 or flag(draw) else g.ints([x.shape[a]])
        for a in range(len(x.shape) - 1)
    ]
    rank = len(x.shape) + 1
    target = g.op(
        "Concat", *lead, g.ints([heads]), inner, shape=[rank], dtype=TensorProto.INT64, axis=0
    )
    return g.op("Reshape", x, target, shape=[*x.shape[:-1], heads, x.shape[-1] // heads])


def inverse_root_of_size(g: Graph, x: Tensor) -> Tensor:
    """`1 / sqrt(Shape(x)[-1])`."""
    size = g.op("Cast", g.size(x, -1), dtype=TensorProto.FLOAT, to=TensorProto.FLOAT)
    return g.op("Reciprocal", g.op("Sqrt", size))


@step
def _scale_from_shape(g: Graph, draw: st.DrawFn) -> Tensor:
    x = g.pick(draw)
    return g.op("Mul", x, inverse_root_of_size(g, x))


# Space.


@step
def _depth_to_space(g: Graph, draw: st.DrawFn) -> Tensor:
    x = g.pick(draw, 4, fits=lambda t: t.shape[1] % 4 == 0)
    n, channels, high, wide = x.shape
    shape = [n, channels // 4, 2 * high, 2 * wide]
    return g.op("DepthToSpace", x, shape=shape, blocksize=2, mode=choose(draw, ["DCR", "CRD"]))


@step
def _space_to_depth(g: Graph, draw: st.DrawFn) -> Tensor:
    x = g.pick(draw, 4, fits=lambda t: t.shape[2] % 2 == t.shape[3] % 2 == 0)
    n, channels, high, wide = x.shape
    return g.op("SpaceToDepth", x, shape=[n, 4 * channels, high // 2, wide // 2], blocksize=2)


@step
def _pool(g: Graph, draw: st.DrawFn) -> Tensor:
    x = g.pick(draw, 4, fits=spatial)
    kind = choose(draw, ["MaxPool", "AveragePool"])
    if flag(draw):
        return g.op(kind, x, shape=x.shape, kernel_shape=[3, 3], pads=[1] * 4)
    shape = [*x.shape[:2], x.shape[2] // 2, x.shape[3] // 2]
    return g.op(kind, x, shape=shape, kernel_shape=[2, 2], strides=[2, 2])


@step
def _resize(g: Graph, draw: st.DrawFn) -> Tensor:
    x = g.pick(draw, 4)
    scales = g.constant(np.array([1, 1, 2, 2], np.float32))
    return g.op(
        "Resize",
        x,
        None,
        scales,
        shape=[*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3]],
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )


@step
def _windows(g: Graph, draw: st.DrawFn) -> list[Tensor]:
    """Swin's window partition, a linear layer inside the windows, and the reverse."""
    x = g.pick(draw, 4)
    n, channels, high, wide = x.shape
    w = choose(draw, [w for w in (2, 3) if high % w == wide % w == 0])
    grid = g.reshape(g.transpose(x, 0, 2, 3, 1), [n, high // w, w, wide // w, w, channels])
    cells = g.transpose(grid, 0, 1, 3, 2, 4, 5)
    inside = g.linear(g.reshape(cells, [math.prod(cells.shape[:3]), w * w, channels]), channels)
    back = g.transpose(g.reshape(inside, cells.shape), 0, 1, 3, 2, 4, 5)
    return [inside, g.transpose(g.reshape(back, [n, high, wide, channels]), 0, 3, 1, 2)]


@step
def _patch_merging(g: Graph, draw: st.DrawFn) -> Tensor:
    """Four strided slices of `[N, H, W, C]`, concatenated, and a linear layer."""
    x = g.pick(draw, 4, fits=lambda t: t.shape[2] % 2 == t.shape[3] % 2 == 0)
    x = g.transpose(x, 0, 2, 3, 1)
    ends = x.shape[1:3]
    quarters = [g.slice(x, [1, 2], [i, j], ends, 2) for j in (0, 1) for i in (0, 1)]
    return g.linear(g.concat(quarters, 3), choose(draw, WIDTHS))
