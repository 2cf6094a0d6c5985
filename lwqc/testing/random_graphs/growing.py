"""A graph while it grows, and the register of the steps that it grows by.

A step takes the graph and hypothesis' `draw`, adds nodes, and returns the tensors that later steps
may use. It raises `Skip` where nothing at hand fits; what it added is then undone. To add a kind,
copy `_activation` of `layers` and decorate it with `@step`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import numpy as np
import onnx
from hypothesis import strategies as st
from numpy.typing import NDArray
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
    weights: dict[str, NDArray[Any]] = field(default_factory=dict)
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

    def constant(self, value: NDArray[Any]) -> Tensor:
        """Store an array. Raises Skip above `MAX_ELEMENTS` numbers."""
        if value.size > MAX_ELEMENTS:
            raise Skip
        dtype = helper.np_dtype_to_tensor_dtype(value.dtype)
        made = Tensor(f"w{len(self.weights)}_{self.kind}", value.shape, dtype)
        self.weights[made.name] = value
        return made

    def ints(self, values: int | Sequence[int]) -> Tensor:
        """Store whole numbers."""
        return self.constant(np.array(values, np.int64))

    def scalar(self, value: float) -> Tensor:
        """Store one number."""
        return self.constant(np.array(value, np.float32))

    def normal(self, shape: Sequence[int], std: float = 1.0) -> Tensor:
        """Store normally distributed numbers."""
        return self.constant((std * self.rng.standard_normal(shape)).astype(np.float32))

    def gains(self, *shape: int) -> Tensor:
        """Store numbers between 0.5 and 1.5."""
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
        """Transpose."""
        return self.op("Transpose", x, shape=[x.shape[a] for a in perm], perm=perm)

    def matmul(self, x: Tensor, y: Tensor) -> Tensor:
        """MatMul."""
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
        """Concat."""
        shape = list(parts[0].shape)
        shape[axis] = sum(p.shape[axis] for p in parts)
        return self.op("Concat", *parts, shape=shape, axis=axis)

    def split(self, x: Tensor, sizes: Sequence[int], axis: int) -> list[Tensor]:
        """Split with stored sizes."""
        shapes = [[*x.shape[:axis], n, *x.shape[axis + 1 :]] for n in sizes]
        return self.ops("Split", [x, self.ints(sizes)], shapes, axis=axis)

    def per_channel(self, x: Tensor, kind: str, axis: int | None = None) -> Tensor:
        """Mul or Add with a stored vector along `axis`."""
        axis = x.channel if axis is None else axis
        shape = [x.shape[axis], *[1] * (len(x.shape) - axis - 1)]
        return self.op(kind, x, self.gains(*shape) if kind == "Mul" else self.normal(shape, 0.5))

    def mean(self, x: Tensor, axes: Sequence[int], keepdims: bool = True) -> Tensor:
        """ReduceMean with stored axes."""
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
    """Register a step under its function's name, without the underscore in front."""
    STEPS[function.__name__.removeprefix("_")] = function
    return function


def choose(draw: st.DrawFn, options: Sequence[T]) -> T:
    """One of `options`, the first when shrinking; skips the step when there is none."""
    if not options:
        raise Skip
    return draw(st.sampled_from(options))


def flag(draw: st.DrawFn) -> bool:
    """True or False."""
    return draw(st.booleans())


def some_axis(draw: st.DrawFn, x: Tensor, least: int = 1) -> int:
    """An axis with at least `least` elements, most often the channel axis."""
    fitting: list[int] = [
        a for a in [*[x.channel] * 4, *range(len(x.shape))] if x.shape[a] >= least
    ]
    return choose(draw, fitting)


def divisors(n: int, options: Sequence[int]) -> list[int]:
    """Those of `options` that divide n and are smaller."""
    return [d for d in options if n % d == 0 and n > d]


def spatial(t: Tensor) -> bool:
    """Whether an image has at least two rows and columns."""
    return min(t.shape[2:]) >= 2
