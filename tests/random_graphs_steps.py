"""The steps that `tests.random_graphs` grows graphs from: one function, one kind.

A step takes the graph and hypothesis' `draw`, adds nodes, and returns the tensors that later
steps may use.  It raises `Skip` where nothing at hand fits; what it added is then undone.
To add a kind, copy `activation` and decorate it with `@step`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import TensorProto, helper

WIDTHS = (4, 6, 8, 12, 16)
MAX_ELEMENTS = 4096


class Skip(Exception):
    """The step does not fit the tensors at hand, or would make one too large."""


class Tensor(NamedTuple):
    """A value of the graph; every size is known while building."""

    name: str
    shape: tuple[int, ...]
    dtype: int = TensorProto.FLOAT

    @property
    def channel(self) -> int:
        """The channel axis: 1 in [N, C, H, W], else the last."""
        return 1 if len(self.shape) == 4 else len(self.shape) - 1


@dataclass
class Graph:
    """A graph while it grows; `pool` holds the tensors that steps may use, oldest first."""

    rng: np.random.Generator
    max_nodes: int
    kind: str = "start"
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: dict[str, np.ndarray] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    pool: list[Tensor] = field(default_factory=list)

    def run(self, kind: str, draw: st.DrawFn) -> None:
        """Run one step; a step that does not fit leaves the graph as it was."""
        self.kind = kind
        before = len(self.nodes), dict(self.weights), dict(self.tensors)
        try:
            made = STEPS[kind](self, draw)
        except Skip:
            self.weights, self.tensors = before[1:]
            del self.nodes[before[0] :]
        else:
            self.pool += [made] if isinstance(made, Tensor) else made

    def pick(
        self, draw: st.DrawFn, *ranks: int, fits: Callable[[Tensor], bool] = lambda _: True
    ) -> Tensor:
        """A live tensor of one of `ranks` (of any, if none is given); often the newest."""
        found = [t for t in self.pool if (not ranks or len(t.shape) in ranks) and fits(t)]
        return choose(draw, [*found[-1:], *found[-1:], *reversed(found)])

    # Constants.

    def constant(self, value: np.ndarray) -> Tensor:
        if value.size > MAX_ELEMENTS:
            raise Skip
        dtype = helper.np_dtype_to_tensor_dtype(value.dtype)
        made = Tensor(f"w{len(self.weights)}_{self.kind}", value.shape, dtype)
        self.weights[made.name] = value
        return made

    def ints(self, values: int | Sequence[int]) -> Tensor:
        return self.constant(np.array(values, np.int64))

    def scalar(self, value: float) -> Tensor:
        return self.constant(np.array(value, np.float32))

    def normal(self, shape: Sequence[int], std: float = 1.0) -> Tensor:
        return self.constant((std * self.rng.standard_normal(shape)).astype(np.float32))

    def gains(self, *shape: int) -> Tensor:
        return self.constant(self.rng.uniform(0.5, 1.5, shape).astype(np.float32))

    # Nodes.

    def ops(
        self,
        kind: str,
        inputs: Iterable[Tensor | None],
        shapes: Sequence[Sequence[int]],
        dtype: int = TensorProto.FLOAT,
        **attributes: Any,
    ) -> list[Tensor]:
        """Add a node with one output per shape; an input None is an omitted one."""
        if len(self.nodes) >= self.max_nodes or max(map(math.prod, shapes)) > MAX_ELEMENTS:
            raise Skip
        name = f"{self.kind}.{len(self.nodes)}.{kind}"
        made = [Tensor(f"{name}.{i}", tuple(s), dtype) for i, s in enumerate(shapes)]
        self.tensors |= {t.name: t for t in made}
        used = [t.name if t else "" for t in inputs]
        self.nodes.append(
            helper.make_node(kind, used, [t.name for t in made], name=name, **attributes)
        )
        return made

    def op(
        self, kind: str, *inputs: Tensor | None, shape: Sequence[int] | None = None, **rest: Any
    ) -> Tensor:
        """Add a node with one output, by default of the inputs' broadcast shape."""
        if shape is None:
            shape = np.broadcast_shapes(*(t.shape for t in inputs if t))
        return self.ops(kind, inputs, [shape], **rest)[0]

    def reshape(self, x: Tensor, shape: Sequence[int]) -> Tensor:
        """Reshape; the stored target has some 0 (keep) and -1 (rest) as exporters write them."""
        target = list(shape)
        if self.rng.random() < 0.5:
            target[: len(x.shape)] = [
                0 if a == b else b for a, b in zip(x.shape, shape, strict=False)
            ]
        if self.rng.random() < 0.5:
            target[self.rng.integers(len(target))] = -1
        return self.op("Reshape", x, self.ints(target), shape=shape)

    def transpose(self, x: Tensor, *perm: int) -> Tensor:
        return self.op("Transpose", x, shape=[x.shape[a] for a in perm], perm=perm)

    def matmul(self, x: Tensor, y: Tensor) -> Tensor:
        batch = np.broadcast_shapes(x.shape[:-2], y.shape[:-2])
        return self.op("MatMul", x, y, shape=[*batch, x.shape[-2], y.shape[-1]])

    def linear(self, x: Tensor, width: int, bias: bool = False) -> Tensor:
        """`x: [..., D] -> [..., width]`."""
        made = self.matmul(x, self.normal([x.shape[-1], width], x.shape[-1] ** -0.5))
        return self.op("Add", self.normal([width], 0.5), made) if bias else made

    def conv(
        self, x: Tensor, out: int, k: int = 1, stride: int = 1, group: int = 1, bias: bool = True
    ) -> Tensor:
        """`x: [N, C, ...] -> [N, out, ...]`, padded by k // 2."""
        spatial = len(x.shape) - 2
        each = x.shape[1] // group
        weight = self.normal([out, each, *[k] * spatial], (each * k**spatial) ** -0.5)
        size = [(n + 2 * (k // 2) - k) // stride + 1 for n in x.shape[2:]]
        return self.op(
            "Conv",
            x,
            weight,
            *[self.normal([out], 0.5)] * bias,
            shape=[x.shape[0], out, *size],
            kernel_shape=[k] * spatial,
            pads=[k // 2] * (2 * spatial),
            strides=[stride] * spatial,
            group=group,
        )

    def slice(
        self, x: Tensor, axes: Sequence[int], starts: Sequence[int], ends: Sequence[int], by: int
    ) -> Tensor:
        """`x[..., start:end:by, ...]` on each of `axes`."""
        shape = list(x.shape)
        for axis, start, end in zip(axes, starts, ends, strict=True):
            shape[axis] = len(range(start, end, by))
        bounds = [self.ints(v) for v in (starts, ends, axes, [by] * len(axes))]
        return self.op("Slice", x, *bounds, shape=shape)

    def concat(self, parts: Sequence[Tensor], axis: int) -> Tensor:
        shape = list(parts[0].shape)
        shape[axis] = sum(p.shape[axis] for p in parts)
        return self.op("Concat", *parts, shape=shape, axis=axis)

    def split(self, x: Tensor, sizes: Sequence[int], axis: int) -> list[Tensor]:
        shapes = [[*x.shape[:axis], n, *x.shape[axis + 1 :]] for n in sizes]
        return self.ops("Split", [x, self.ints(sizes)], shapes, axis=axis)

    def per_channel(self, x: Tensor, kind: str, axis: int | None = None) -> Tensor:
        """Mul or Add with a stored vector along `axis`."""
        axis = x.channel if axis is None else axis
        shape = [x.shape[axis], *[1] * (len(x.shape) - axis - 1)]
        return self.op(kind, x, self.gains(*shape) if kind == "Mul" else self.normal(shape, 0.5))

    def mean(self, x: Tensor, axes: Sequence[int], keepdims: bool = True) -> Tensor:
        kept = [(i, 1 if i in axes else n) for i, n in enumerate(x.shape)]
        shape = [n for i, n in kept if keepdims or i not in axes]
        return self.op("ReduceMean", x, self.ints(axes), shape=shape, keepdims=int(keepdims))

    def size(self, x: Tensor, axis: int) -> Tensor:
        """`Shape(x)[axis]` as an int64 vector of one element."""
        sizes = self.op("Shape", x, shape=[len(x.shape)], dtype=TensorProto.INT64)
        index = self.ints([axis])
        return self.op("Gather", sizes, index, shape=[1], dtype=TensorProto.INT64, axis=0)


T = TypeVar("T")
Step = Callable[[Graph, st.DrawFn], "Tensor | list[Tensor]"]
STEPS: dict[str, Step] = {}


def step(function: Step) -> Step:
    """Register a step under its function's name."""
    STEPS[function.__name__] = function
    return function


def choose(draw: st.DrawFn, options: Sequence[T]) -> T:
    """One of `options`, the first when shrinking; skips the step when there is none."""
    if not options:
        raise Skip
    return draw(st.sampled_from(options))


def flag(draw: st.DrawFn) -> bool:
    return draw(st.booleans())


def some_axis(draw: st.DrawFn, x: Tensor, least: int = 1) -> int:
    """An axis with at least `least` elements, most often the channel axis."""
    fitting: list[int] = [
        a for a in [*[x.channel] * 4, *range(len(x.shape))] if x.shape[a] >= least
    ]
    return choose(draw, fitting)


def divisors(n: int, options: Sequence[int]) -> list[int]:
    return [d for d in options if n % d == 0 and n > d]


def spatial(t: Tensor) -> bool:
    return min(t.shape[2:]) >= 2


# Elementwise.


@step
def activation(g: Graph, draw: st.DrawFn) -> Tensor:
    return g.op(choose(draw, ["Relu", "Sigmoid", "Tanh"]), g.pick(draw))


@step
def gelu(g: Graph, draw: st.DrawFn) -> Tensor:
    x = g.pick(draw)
    erf = g.op("Erf", g.op("Div", x, g.scalar(2**0.5)))
    return g.op("Mul", g.op("Mul", x, g.op("Add", erf, g.scalar(1))), g.scalar(0.5))


@step
def channel_vector(g: Graph, draw: st.DrawFn) -> Tensor:
    return g.per_channel(g.pick(draw), choose(draw, ["Mul", "Add"]))


@step
def prelu(g: Graph, draw: st.DrawFn) -> Tensor:
    x = g.pick(draw)
    slope = [x.shape[x.channel], *[1] * (len(x.shape) - x.channel - 1)]
    return g.op("PRelu", x, g.normal(slope, 0.3))


@step
def where_mask(g: Graph, draw: st.DrawFn) -> Tensor:
    """A constant mask over the trailing axes picks x or a stored fill."""
    x = g.pick(draw)
    mask = g.rng.random(x.shape[choose(draw, [len(x.shape) - 1, 1]) :]) < 0.7
    fill = g.scalar(-1.0) if flag(draw) else g.normal(x.shape[-1:], 0.5)
    return g.op("Where", g.constant(mask), x, fill)


# Linear.


@step
def matmul(g: Graph, draw: st.DrawFn) -> Tensor:
    return g.linear(g.pick(draw), choose(draw, WIDTHS), flag(draw))


@step
def token_mixing(g: Graph, draw: st.DrawFn) -> Tensor:
    """A stored matrix on the left: mixes the rows."""
    x = g.pick(draw, 3, 4)
    rows = x.shape[-2]
    return g.matmul(g.normal([choose(draw, WIDTHS), rows], rows**-0.5), x)


@step
def einsum_linear(g: Graph, draw: st.DrawFn) -> Tensor:
    x, width = g.pick(draw, 3), choose(draw, WIDTHS)
    equation, order = choose(draw, [("btd,df->btf", 1), ("btd,fd->btf", -1)])
    weight = g.normal([x.shape[-1], width][::order], x.shape[-1] ** -0.5)
    return g.op("Einsum", x, weight, shape=[*x.shape[:2], width], equation=equation)


@step
def gemm(g: Graph, draw: st.DrawFn) -> Tensor:
    x, width = g.pick(draw), choose(draw, WIDTHS)
    if len(x.shape) != 2:
        x = g.op("Flatten", x, shape=[x.shape[0], math.prod(x.shape[1:])], axis=1)
    inner, transposed = x.shape[1], flag(draw)
    weight = g.normal([width, inner] if transposed else [inner, width], inner**-0.5)
    bias = [g.normal([width], 0.5)] * flag(draw)
    return g.op("Gemm", x, weight, *bias, shape=[x.shape[0], width], transB=int(transposed))


# Convolutions.


@step
def conv_1x1(g: Graph, draw: st.DrawFn) -> Tensor:
    return g.conv(g.pick(draw, 4), choose(draw, WIDTHS), bias=flag(draw))


@step
def conv_3x3(g: Graph, draw: st.DrawFn) -> Tensor:
    return g.conv(g.pick(draw, 4, 3), choose(draw, WIDTHS), 3)


@step
def conv_strided(g: Graph, draw: st.DrawFn) -> Tensor:
    x = g.pick(draw, 4, fits=spatial)
    return g.conv(x, choose(draw, WIDTHS), choose(draw, [1, 3]), stride=2)


@step
def conv_depthwise(g: Graph, draw: st.DrawFn) -> Tensor:
    x = g.pick(draw, 4)
    return g.conv(x, x.shape[1] * choose(draw, [1, 2]), 3, group=x.shape[1], bias=flag(draw))


@step
def conv_grouped(g: Graph, draw: st.DrawFn) -> Tensor:
    x = g.pick(draw, 4, fits=lambda t: t.shape[1] % 2 == 0)
    group = choose(draw, divisors(x.shape[1], (2, 4)))
    return g.conv(x, choose(draw, [w for w in WIDTHS if w % group == 0]), 3, group=group)


@step
def conv_transpose(g: Graph, draw: st.DrawFn) -> Tensor:
    x, width = g.pick(draw, 4), choose(draw, WIDTHS)
    n, channels, high, wide = x.shape
    group = choose(draw, [1, *divisors(channels, [2])])
    weight = g.normal([channels, width // group, 2, 2], (channels // group) ** -0.5)
    size = [n, width, 2 * high, 2 * wide]
    bias = g.normal([width], 0.5)
    return g.op("ConvTranspose", x, weight, bias, shape=size, strides=[2, 2], group=group)


@step
def squeeze_excite(g: Graph, draw: st.DrawFn) -> Tensor:
    x = g.pick(draw, 4)
    gate = g.op("GlobalAveragePool", x, shape=[*x.shape[:2], 1, 1])
    if flag(draw):
        gate = g.op("Relu", g.conv(gate, choose(draw, WIDTHS)))
    return g.op("Mul", x, g.op("Sigmoid", g.conv(gate, x.shape[1])))


# Several tensors.


@step
def residual(g: Graph, draw: st.DrawFn) -> Tensor:
    """Add, or Mul by a gate: a plain product could double the exponent at every step."""
    x = g.pick(draw, fits=lambda t: any(t != u and t.shape == u.shape for u in g.pool))
    y = g.pick(draw, fits=lambda t: t != x and t.shape == x.shape)
    return g.op("Add", x, y) if flag(draw) else g.op("Mul", g.op("Sigmoid", x), y)


@step
def concat(g: Graph, draw: st.DrawFn) -> Tensor:
    x = g.pick(draw)
    axis = some_axis(draw, x)

    def fits(t: Tensor) -> bool:
        other = list(t.shape[:axis]), list(t.shape[axis + 1 :])
        return other == (list(x.shape[:axis]), list(x.shape[axis + 1 :]))

    parts = [g.pick(draw, len(x.shape), fits=fits) for _ in range(choose(draw, [1, 2]))]
    return g.concat([x, *parts], axis)


# Parts of a tensor.


@step
def split(g: Graph, draw: st.DrawFn) -> list[Tensor]:
    x = g.pick(draw)
    axis = some_axis(draw, x, 3)
    size, pieces = x.shape[axis], choose(draw, [2, 3])
    if size % pieces == 0 and flag(draw):
        return g.split(x, [size // pieces] * pieces, axis)
    cuts = [0, *choose(draw, [[1], [size // 2], [size // 3, size - 1]]), size]
    return g.split(x, np.diff(cuts).tolist(), axis)


@step
def slice_run(g: Graph, draw: st.DrawFn) -> Tensor:
    x = g.pick(draw)
    axis = some_axis(draw, x, 3)
    start = choose(draw, range(x.shape[axis] - 1))
    return g.slice(x, [axis], [start], [choose(draw, range(start + 2, x.shape[axis] + 1))], 1)


@step
def slice_strided(g: Graph, draw: st.DrawFn) -> Tensor:
    x = g.pick(draw)
    axis = some_axis(draw, x, 3)
    return g.slice(x, [axis], [choose(draw, [0, 1])], [x.shape[axis]], 2)


@step
def gather_run(g: Graph, draw: st.DrawFn) -> Tensor:
    x = g.pick(draw)
    axis = some_axis(draw, x, 3)
    start = choose(draw, range(x.shape[axis] - 1))
    run = range(start, choose(draw, range(start + 2, x.shape[axis] + 1)))
    shape = [*x.shape[:axis], len(run), *x.shape[axis + 1 :]]
    return g.op("Gather", x, g.ints(list(run)), shape=shape, axis=axis)


@step
def gather_scalar(g: Graph, draw: st.DrawFn) -> Tensor:
    x = g.pick(draw, 3, 4, 5)
    axis = choose(draw, range(len(x.shape)))
    index = g.ints(choose(draw, range(x.shape[axis])))
    return g.op("Gather", x, index, shape=[*x.shape[:axis], *x.shape[axis + 1 :]], axis=axis)


def padded(g: Graph, x: Tensor, axis: int, before: int, after: int) -> Tensor:
    rank = len(x.shape)
    pads = np.zeros(2 * rank, np.int64)
    pads[[axis, rank + axis]] = before, after
    shape = [n + (before + after) * (a == axis) for a, n in enumerate(x.shape)]
    return g.op("Pad", x, g.constant(pads), shape=shape)


@step
def pad_spatial(g: Graph, draw: st.DrawFn) -> Tensor:
    x = g.pick(draw, 3, 4)
    axis = choose(draw, [a for a in range(1, len(x.shape)) if a != x.channel])
    return padded(g, x, axis, choose(draw, [0, 1]), 1)


@step
def pad_channels(g: Graph, draw: st.DrawFn) -> Tensor:
    x = g.pick(draw)
    return padded(g, x, x.channel, choose(draw, [0, 2]), choose(draw, [2, 4]))


# Shapes.


@step
def split_axis(g: Graph, draw: st.DrawFn) -> Tensor:
    """Reshape that splits an axis, as into heads."""
    x = g.pick(draw, 2, 3, 4)
    axis = some_axis(draw, x)
    outer = choose(draw, divisors(x.shape[axis], (2, 3, 4)))
    return g.reshape(x, [*x.shape[:axis], outer, x.shape[axis] // outer, *x.shape[axis + 1 :]])


@step
def merge_axes(g: Graph, draw: st.DrawFn) -> Tensor:
    x = g.pick(draw, 3, 4, 5)
    axis = choose(draw, range(1, len(x.shape) - 1))
    merged = x.shape[axis] * x.shape[axis + 1]
    return g.reshape(x, [*x.shape[:axis], merged, *x.shape[axis + 2 :]])


@step
def channel_shuffle(g: Graph, draw: st.DrawFn) -> Tensor:
    x = g.pick(draw, 4)
    n, channels, *size = x.shape
    groups = choose(draw, divisors(channels, (2, 3, 4)))
    blocks = g.reshape(x, [n, groups, channels // groups, *size])
    return g.reshape(g.transpose(blocks, 0, 2, 1, 3, 4), x.shape)


@step
def transpose(g: Graph, draw: st.DrawFn) -> Tensor:
    x = g.pick(draw, 3, 4, 5)
    return g.transpose(x, *draw(st.permutations(range(len(x.shape)))))


@step
def tokens(g: Graph, draw: st.DrawFn) -> Tensor:
    """`[N, C, H, W] -> [N, H * W, C]`."""
    x = g.pick(draw, 4)
    flat = g.reshape(x, [*x.shape[:2], math.prod(x.shape[2:])])
    return g.transpose(flat, 0, 2, 1)


@step
def squeeze(g: Graph, draw: st.DrawFn) -> Tensor:
    x = g.pick(draw, 3, 4, 5, fits=lambda t: 1 in t.shape)
    axis = choose(draw, [a for a, n in enumerate(x.shape) if n == 1])
    return g.op("Squeeze", x, g.ints([axis]), shape=[*x.shape[:axis], *x.shape[axis + 1 :]])


@step
def unsqueeze(g: Graph, draw: st.DrawFn) -> Tensor:
    x = g.pick(draw, 2, 3, 4)
    axis = choose(draw, range(len(x.shape) + 1))
    return g.op("Unsqueeze", x, g.ints([axis]), shape=[*x.shape[:axis], 1, *x.shape[axis:]])


@step
def flatten(g: Graph, draw: st.DrawFn) -> Tensor:
    x = g.pick(draw, 3, 4, 5)
    axis = choose(draw, range(1, len(x.shape)))
    return g.op(
        "Flatten", x, shape=[math.prod(x.shape[:axis]), math.prod(x.shape[axis:])], axis=axis
    )


@step
def reshape_from_shape(g: Graph, draw: st.DrawFn) -> Tensor:
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
def scale_from_shape(g: Graph, draw: st.DrawFn) -> Tensor:
    x = g.pick(draw)
    return g.op("Mul", x, inverse_root_of_size(g, x))


# Space.


@step
def depth_to_space(g: Graph, draw: st.DrawFn) -> Tensor:
    x = g.pick(draw, 4, fits=lambda t: t.shape[1] % 4 == 0)
    n, channels, high, wide = x.shape
    shape = [n, channels // 4, 2 * high, 2 * wide]
    return g.op("DepthToSpace", x, shape=shape, blocksize=2, mode=choose(draw, ["DCR", "CRD"]))


@step
def space_to_depth(g: Graph, draw: st.DrawFn) -> Tensor:
    x = g.pick(draw, 4, fits=lambda t: t.shape[2] % 2 == t.shape[3] % 2 == 0)
    n, channels, high, wide = x.shape
    return g.op("SpaceToDepth", x, shape=[n, 4 * channels, high // 2, wide // 2], blocksize=2)


@step
def pool(g: Graph, draw: st.DrawFn) -> Tensor:
    x = g.pick(draw, 4, fits=spatial)
    kind = choose(draw, ["MaxPool", "AveragePool"])
    if flag(draw):
        return g.op(kind, x, shape=x.shape, kernel_shape=[3, 3], pads=[1] * 4)
    shape = [*x.shape[:2], x.shape[2] // 2, x.shape[3] // 2]
    return g.op(kind, x, shape=shape, kernel_shape=[2, 2], strides=[2, 2])


@step
def resize(g: Graph, draw: st.DrawFn) -> Tensor:
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
def windows(g: Graph, draw: st.DrawFn) -> list[Tensor]:
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
def patch_merging(g: Graph, draw: st.DrawFn) -> Tensor:
    """Four strided slices of `[N, H, W, C]`, concatenated, and a linear layer."""
    x = g.pick(draw, 4, fits=lambda t: t.shape[2] % 2 == t.shape[3] % 2 == 0)
    x = g.transpose(x, 0, 2, 3, 1)
    ends = x.shape[1:3]
    quarters = [g.slice(x, [1, 2], [i, j], ends, 2) for j in (0, 1) for i in (0, 1)]
    return g.linear(g.concat(quarters, 3), choose(draw, WIDTHS))


# Normalisation and reduction.


@step
def batch_norm(g: Graph, draw: st.DrawFn) -> Tensor:
    x = g.pick(draw, 2, 3, 4)
    size = x.shape[1]
    stored = g.gains(size), g.normal([size], 0.5), g.normal([size], 0.5), g.gains(size)
    return g.op("BatchNormalization", x, *stored, shape=x.shape)


@step
def layer_norm(g: Graph, draw: st.DrawFn) -> Tensor:
    x = g.pick(draw, fits=lambda t: t.shape[-1] > 2)
    size = x.shape[-1]
    stored = g.gains(size), g.normal([size], 0.5)
    return g.op("LayerNormalization", x, *stored, shape=x.shape, axis=-1, epsilon=0.01)


@step
def rms_norm(g: Graph, draw: st.DrawFn) -> Tensor:
    x = g.pick(draw, fits=lambda t: t.shape[-1] > 2)
    square = g.op("Pow", x, g.scalar(2), shape=x.shape)
    mean = g.mean(square, [len(x.shape) - 1])
    root = g.op("Sqrt", g.op("Add", mean, g.scalar(0.01)))
    return g.per_channel(g.op("Div", x, root), "Mul", len(x.shape) - 1)


@step
def group_norm(g: Graph, draw: st.DrawFn) -> Tensor:
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
def softmax(g: Graph, draw: st.DrawFn) -> Tensor:
    x = g.pick(draw)
    return g.op("Softmax", x, axis=some_axis(draw, x, 2))


@step
def reduce_mean(g: Graph, draw: st.DrawFn) -> Tensor:
    """Over the channel axis or over all others but the batch."""
    x = g.pick(draw, 3, 4)
    others = [a for a in range(1, len(x.shape)) if a != x.channel]
    return g.mean(x, choose(draw, [others, [x.channel]]), keepdims=flag(draw))


# Sequences.


def recurrent(g: Graph, draw: st.DrawFn, kind: str, gates: int) -> Tensor:
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
def lstm(g: Graph, draw: st.DrawFn) -> Tensor:
    return recurrent(g, draw, "LSTM", 4)


@step
def gru(g: Graph, draw: st.DrawFn) -> Tensor:
    return recurrent(g, draw, "GRU", 3)


@step
def rotary(g: Graph, draw: st.DrawFn) -> Tensor:
    """`x * cos + concat(-x2, x1) * sin` with stored `cos, sin: [T, D]`."""
    x = g.pick(draw, 3, 4, fits=lambda t: t.shape[-1] % 2 == 0)
    *_, rows, size = x.shape
    last, half = len(x.shape) - 1, size // 2
    angles = np.tile(g.rng.uniform(0, 3, [rows, half]), 2)
    low, high = g.slice(x, [last], [0], [half], 1), g.slice(x, [last], [half], [size], 1)
    turned = g.concat([g.op("Neg", high), low], last)
    cos, sin = (g.constant(f(angles).astype(np.float32)) for f in (np.cos, np.sin))
    return g.op("Add", g.op("Mul", x, cos), g.op("Mul", turned, sin))


def to_heads(g: Graph, x: Tensor, heads: int) -> Tensor:
    """`[N, T, heads * d] -> [N, heads, T, d]`."""
    n, rows, width = x.shape
    return g.transpose(g.reshape(x, [n, rows, heads, width // heads]), 0, 2, 1, 3)


def attend(g: Graph, draw: st.DrawFn, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
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


def tokens_of(g: Graph, draw: st.DrawFn) -> Tensor:
    return g.pick(draw, 3, fits=lambda t: t.shape[1] > 1)


@step
def attention(g: Graph, draw: st.DrawFn) -> Tensor:
    """Separate projections; the values' head size may differ from the keys'."""
    x, heads = tokens_of(g, draw), choose(draw, [2, 4])
    size, values = choose(draw, [4, 6]), choose(draw, [4, 6])
    q, k, v = (
        to_heads(g, g.linear(x, heads * each, flag(draw)), heads) for each in (size, size, values)
    )
    return attend(g, draw, q, k, v)


@step
def attention_grouped_query(g: Graph, draw: st.DrawFn) -> Tensor:
    """Two key/value heads, each expanded to `repeat` query heads."""
    x, size, repeat = tokens_of(g, draw), choose(draw, [4, 6]), choose(draw, [2, 3])
    n, rows, _ = x.shape
    q = to_heads(g, g.linear(x, 2 * repeat * size), 2 * repeat)

    def expanded() -> Tensor:
        few = to_heads(g, g.linear(x, 2 * size), 2)
        one = g.op("Unsqueeze", few, g.ints([2]), shape=[n, 2, 1, rows, size])
        shape = [n, 2, repeat, rows, size]
        many = g.op("Expand", one, g.ints(shape), shape=shape)
        return g.reshape(many, [n, 2 * repeat, rows, size])

    return attend(g, draw, q, expanded(), expanded())


@step
def attention_packed_split(g: Graph, draw: st.DrawFn) -> Tensor:
    x, heads, size = tokens_of(g, draw), choose(draw, [2, 4]), choose(draw, [4, 6])
    packed = g.linear(x, 3 * heads * size, flag(draw))
    q, k, v = (to_heads(g, part, heads) for part in g.split(packed, [heads * size] * 3, 2))
    return attend(g, draw, q, k, v)


@step
def attention_packed_reshape(g: Graph, draw: st.DrawFn) -> Tensor:
    """`[N, T, 3, heads, d]`, transposed, then indexed by 0, 1 and 2."""
    x, heads, size = tokens_of(g, draw), choose(draw, [2, 4]), choose(draw, [4, 6])
    n, rows, _ = x.shape
    packed = g.reshape(g.linear(x, 3 * heads * size, flag(draw)), [n, rows, 3, heads, size])
    turned = g.transpose(packed, 2, 0, 3, 1, 4)
    q, k, v = (g.op("Gather", turned, g.ints(i), shape=turned.shape[1:], axis=0) for i in range(3))
    return attend(g, draw, q, k, v)
