"""Steps of layers: elementwise operators, products, convolutions, sums of branches."""

from __future__ import annotations

import math

from hypothesis import strategies as st

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

# Elementwise.


@step
def _activation(g: Graph, draw: st.DrawFn) -> Tensor:
    return g.op(choose(draw, ["Relu", "Sigmoid", "Tanh"]), g.pick(draw))


@step
def _gelu(g: Graph, draw: st.DrawFn) -> Tensor:
    x = g.pick(draw)
    erf = g.op("Erf", g.op("Div", x, g.scalar(2**0.5)))
    return g.op("Mul", g.op("Mul", x, g.op("Add", erf, g.scalar(1))), g.scalar(0.5))


@step
def _channel_vector(g: Graph, draw: st.DrawFn) -> Tensor:
    return g.per_channel(g.pick(draw), choose(draw, ["Mul", "Add"]))


@step
def _prelu(g: Graph, draw: st.DrawFn) -> Tensor:
    x = g.pick(draw)
    slope = [x.shape[x.channel], *[1] * (len(x.shape) - x.channel - 1)]
    return g.op("PRelu", x, g.normal(slope, 0.3))


@step
def _where_mask(g: Graph, draw: st.DrawFn) -> Tensor:
    """A constant mask over the trailing axes picks x or a stored fill."""
    x = g.pick(draw)
    mask = g.rng.random(x.shape[choose(draw, [len(x.shape) - 1, 1]) :]) < 0.7
    fill = g.scalar(-1.0) if flag(draw) else g.normal(x.shape[-1:], 0.5)
    return g.op("Where", g.constant(mask), x, fill)


# Linear.


@step
def _matmul(g: Graph, draw: st.DrawFn) -> Tensor:
    return g.linear(g.pick(draw), choose(draw, WIDTHS), flag(draw))


@step
def _token_mixing(g: Graph, draw: st.DrawFn) -> Tensor:
    """A stored matrix on the left: mixes the rows."""
    x = g.pick(draw, 3, 4)
    rows = x.shape[-2]
    return g.matmul(g.normal([choose(draw, WIDTHS), rows], rows**-0.5), x)


@step
def _einsum_linear(g: Graph, draw: st.DrawFn) -> Tensor:
    x, width = g.pick(draw, 3), choose(draw, WIDTHS)
    equation, order = choose(draw, [("btd,df->btf", 1), ("btd,fd->btf", -1)])
    weight = g.normal([x.shape[-1], width][::order], x.shape[-1] ** -0.5)
    return g.op("Einsum", x, weight, shape=[*x.shape[:2], width], equation=equation)


@step
def _gemm(g: Graph, draw: st.DrawFn) -> Tensor:
    x, width = g.pick(draw), choose(draw, WIDTHS)
    if len(x.shape) != 2:
        x = g.op("Flatten", x, shape=[x.shape[0], math.prod(x.shape[1:])], axis=1)
    inner, transposed = x.shape[1], flag(draw)
    weight = g.normal([width, inner] if transposed else [inner, width], inner**-0.5)
    bias = [g.normal([width], 0.5)] * flag(draw)
    return g.op("Gemm", x, weight, *bias, shape=[x.shape[0], width], transB=int(transposed))


# Convolutions.


@step
def _conv_1x1(g: Graph, draw: st.DrawFn) -> Tensor:
    return g.conv(g.pick(draw, 4), choose(draw, WIDTHS), bias=flag(draw))


@step
def _conv_3x3(g: Graph, draw: st.DrawFn) -> Tensor:
    return g.conv(g.pick(draw, 4, 3), choose(draw, WIDTHS), 3)


@step
def _conv_strided(g: Graph, draw: st.DrawFn) -> Tensor:
    x = g.pick(draw, 4, fits=spatial)
    return g.conv(x, choose(draw, WIDTHS), choose(draw, [1, 3]), stride=2)


@step
def _conv_depthwise(g: Graph, draw: st.DrawFn) -> Tensor:
    x = g.pick(draw, 4)
    return g.conv(x, x.shape[1] * choose(draw, [1, 2]), 3, group=x.shape[1], bias=flag(draw))


@step
def _conv_grouped(g: Graph, draw: st.DrawFn) -> Tensor:
    x = g.pick(draw, 4, fits=lambda t: t.shape[1] % 2 == 0)
    group = choose(draw, divisors(x.shape[1], (2, 4)))
    return g.conv(x, choose(draw, [w for w in WIDTHS if w % group == 0]), 3, group=group)


@step
def _conv_transpose(g: Graph, draw: st.DrawFn) -> Tensor:
    x, width = g.pick(draw, 4), choose(draw, WIDTHS)
    n, channels, high, wide = x.shape
    group = choose(draw, [1, *divisors(channels, [2])])
    weight = g.normal([channels, width // group, 2, 2], (channels // group) ** -0.5)
    size = [n, width, 2 * high, 2 * wide]
    bias = g.normal([width], 0.5)
    return g.op("ConvTranspose", x, weight, bias, shape=size, strides=[2, 2], group=group)


@step
def _squeeze_excite(g: Graph, draw: st.DrawFn) -> Tensor:
    x = g.pick(draw, 4)
    gate = g.op("GlobalAveragePool", x, shape=[*x.shape[:2], 1, 1])
    if flag(draw):
        gate = g.op("Relu", g.conv(gate, choose(draw, WIDTHS)))
    return g.op("Mul", x, g.op("Sigmoid", g.conv(gate, x.shape[1])))


# Several tensors.


@step
def _residual(g: Graph, draw: st.DrawFn) -> Tensor:
    """Add, or Mul by a gate: a plain product could double the exponent at every step."""
    x = g.pick(draw, fits=lambda t: any(t != u and t.shape == u.shape for u in g.pool))
    y = g.pick(draw, fits=lambda t: t != x and t.shape == x.shape)
    return g.op("Add", x, y) if flag(draw) else g.op("Mul", g.op("Sigmoid", x), y)


@step
def _concat(g: Graph, draw: st.DrawFn) -> Tensor:
    x = g.pick(draw)
    axis = some_axis(draw, x)

    def fits(t: Tensor) -> bool:
        other = list(t.shape[:axis]), list(t.shape[axis + 1 :])
        return other == (list(x.shape[:axis]), list(x.shape[axis + 1 :]))

    parts = [g.pick(draw, len(x.shape), fits=fits) for _ in range(choose(draw, [1, 2]))]
    return g.concat([x, *parts], axis)
