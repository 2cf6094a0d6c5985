"""Steps of whole blocks: norms, reductions, recurrence, attention."""

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

# Normalisation and reduction.
from lwqc.testing.random_graphs.views import inverse_root_of_size


@step
def _batch_norm(g: Graph, draw: st.DrawFn) -> Tensor:
    x = g.pick(draw, 2, 3, 4)
    size = x.shape[1]
    stored = g.gains(size), g.normal([size], 0.5), g.normal([size], 0.5), g.gains(size)
    return g.op("BatchNormalization", x, *stored, shape=x.shape)


@step
def _layer_norm(g: Graph, draw: st.DrawFn) -> Tensor:
    x = g.pick(draw, fits=lambda t: t.shape[-1] > 2)
    size = x.shape[-1]
    stored = g.gains(size), g.normal([size], 0.5)
    return g.op("LayerNormalization", x, *stored, shape=x.shape, axis=-1, epsilon=0.01)


@step
def _rms_norm(g: Graph, draw: st.DrawFn) -> Tensor:
    x = g.pick(draw, fits=lambda t: t.shape[-1] > 2)
    square = g.op("Pow", x, g.scalar(2), shape=x.shape)
    mean = g.mean(square, [len(x.shape) - 1])
    root = g.op("Sqrt", g.op("Add", mean, g.scalar(0.01)))
    return g.per_channel(g.op("Div", x, root), "Mul", len(x.shape) - 1)


@step
def _group_norm(g: Graph, draw: st.DrawFn) -> Tensor:
    """Reshape to groups, InstanceNormalization, back, and an affine map per channel."""
    x = g.pick(draw, 4, fits=spatial)
    n, channels, *size = x.shape
    groups = choose(draw, divisors(channels, (2, 3, 4)))
    folded = g.reshape(x, [n, groups, channels // groups * math.prod(size)])
    stored = g.gains(groups), g.normal([groups], 0.5)
    normed = g.op("InstanceNormalization", folded, *stored, shape=folded.shape, epsilon=0.01)
    shape = g.op("Shape", x, shape=[4], dtype=TensorProto.INT64) if flag(draw) else None
    back = g.op("Reshape", normed, shape, shape=x.shape) if shape else g.reshape(normed, x.shape)
    return g.per_channel(g.per_channel(back, "Mul"), "Add")


@step
def _softmax(g: Graph, draw: st.DrawFn) -> Tensor:
    x = g.pick(draw)
    return g.op("Softmax", x, axis=some_axis(draw, x, 2))


@step
def _reduce_mean(g: Graph, draw: st.DrawFn) -> Tensor:
    """Over the channel axis or over all others but the batch."""
    x = g.pick(draw, 3, 4)
    others = [a for a in range(1, len(x.shape)) if a != x.channel]
    return g.mean(x, choose(draw, [others, [x.channel]]), keepdims=flag(draw))


# Sequences.


def _recurrent(g: Graph, draw: st.DrawFn, kind: str, gates: int) -> Tensor:
    """`[N, T, D] -> [T, N, hidden]`, or `2 * hidden` when bidirectional."""
    x, hidden = g.pick(draw, 3), choose(draw, [4, 6, 8])
    n, steps, width = x.shape
    both = flag(draw)
    weights = (
        g.normal([1 + both, gates * hidden, width], width**-0.5),
        g.normal([1 + both, gates * hidden, hidden], hidden**-0.5),
        g.normal([1 + both, 2 * gates * hidden], 0.5),
    )
    made = g.op(
        kind,
        g.transpose(x, 1, 0, 2),
        *weights,
        shape=[steps, 1 + both, n, hidden],
        hidden_size=hidden,
        direction="bidirectional" if both else "forward",
    )
    if both:
        return g.reshape(g.transpose(made, 0, 2, 1, 3), [steps, n, 2 * hidden])
    return g.op("Squeeze", made, g.ints([1]), shape=[steps, n, hidden])


@step
def _lstm(g: Graph, draw: st.DrawFn) -> Tensor:
    return _recurrent(g, draw, "LSTM", 4)


@step
def _gru(g: Graph, draw: st.DrawFn) -> Tensor:
    return _recurrent(g, draw, "GRU", 3)


@step
def _rotary(g: Graph, draw: st.DrawFn) -> Tensor:
    """`x * cos + concat(-x2, x1) * sin` with stored `cos, sin: [T, D]`."""
    x = g.pick(draw, 3, 4, fits=lambda t: t.shape[-1] % 2 == 0)
    *_, rows, size = x.shape
    last, half = len(x.shape) - 1, size // 2
    angles = np.tile(g.rng.uniform(0, 3, [rows, half]), 2)
    low, high = g.slice(x, [last], [0], [half], 1), g.slice(x, [last], [half], [size], 1)
    turned = g.concat([g.op("Neg", high), low], last)
    cos, sin = (g.constant(f(angles).astype(np.float32)) for f in (np.cos, np.sin))
    return g.op("Add", g.op("Mul", x, cos), g.op("Mul", turned, sin))


def _to_heads(g: Graph, x: Tensor, heads: int) -> Tensor:
    """`[N, T, heads * d] -> [N, heads, T, d]`."""
    n, rows, width = x.shape
    return g.transpose(g.reshape(x, [n, rows, heads, width // heads]), 0, 2, 1, 3)


def _attend(g: Graph, draw: st.DrawFn, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention over `[N, heads, T, d]`, merged to `[N, T, heads * d]` and projected."""
    n, heads, rows, _ = q.shape
    scores = g.matmul(q, g.transpose(k, 0, 1, 3, 2))
    scale = choose(draw, ["Mul", "Div", "Shape"])
    if scale == "Shape":
        scores = g.op("Mul", scores, inverse_root_of_size(g, q))
    else:
        scores = g.op(scale, scores, g.scalar(q.shape[-1] ** (0.5 if scale == "Div" else -0.5)))
    mixed = g.matmul(g.op("Softmax", scores, axis=-1), v)
    merged = g.reshape(g.transpose(mixed, 0, 2, 1, 3), [n, rows, heads * v.shape[-1]])
    return g.linear(merged, choose(draw, WIDTHS), flag(draw))


def _tokens_of(g: Graph, draw: st.DrawFn) -> Tensor:
    return g.pick(draw, 3, fits=lambda t: t.shape[1] > 1)


@step
def _attention(g: Graph, draw: st.DrawFn) -> Tensor:
    """Separate projections; the values' head size may differ from the keys'."""
    x, heads = _tokens_of(g, draw), choose(draw, [2, 4])
    size, values = choose(draw, [4, 6]), choose(draw, [4, 6])
    q, k, v = (
        _to_heads(g, g.linear(x, heads * each, flag(draw)), heads) for each in (size, size, values)
    )
    return _attend(g, draw, q, k, v)


@step
def _attention_grouped_query(g: Graph, draw: st.DrawFn) -> Tensor:
    """Two key/value heads, each expanded to `repeat` query heads."""
    x, size, repeat = _tokens_of(g, draw), choose(draw, [4, 6]), choose(draw, [2, 3])
    n, rows, _ = x.shape
    q = _to_heads(g, g.linear(x, 2 * repeat * size), 2 * repeat)

    def expanded() -> Tensor:
        few = _to_heads(g, g.linear(x, 2 * size), 2)
        one = g.op("Unsqueeze", few, g.ints([2]), shape=[n, 2, 1, rows, size])
        shape = [n, 2, repeat, rows, size]
        many = g.op("Expand", one, g.ints(shape), shape=shape)
        return g.reshape(many, [n, 2 * repeat, rows, size])

    return _attend(g, draw, q, expanded(), expanded())


@step
def _attention_packed_split(g: Graph, draw: st.DrawFn) -> Tensor:
    x, heads, size = _tokens_of(g, draw), choose(draw, [2, 4]), choose(draw, [4, 6])
    packed = g.linear(x, 3 * heads * size, flag(draw))
    q, k, v = (_to_heads(g, part, heads) for part in g.split(packed, [heads * size] * 3, 2))
    return _attend(g, draw, q, k, v)


@step
def _attention_packed_reshape(g: Graph, draw: st.DrawFn) -> Tensor:
    """`[N, T, 3, heads, d]`, transposed, then indexed by 0, 1 and 2."""
    x, heads, size = _tokens_of(g, draw), choose(draw, [2, 4]), choose(draw, [4, 6])
    n, rows, _ = x.shape
    packed = g.reshape(g.linear(x, 3 * heads * size, flag(draw)), [n, rows, 3, heads, size])
    turned = g.transpose(packed, 2, 0, 3, 1, 4)
    q, k, v = (g.op("Gather", turned, g.ints(i), shape=turned.shape[1:], axis=0) for i in range(3))
    return _attend(g, draw, q, k, v)
