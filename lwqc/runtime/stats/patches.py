"""A linear operator's input as rows of features: what its weight is multiplied with."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
import onnx_ir as ir

from lwqc.runtime.stats.emitter import Emitter


@dataclass(frozen=True)
class Window:
    """How a convolution reads its input: attributes of Conv, with the kernel's shape.

    channels: input channels of each group. A row is one output position of one sample; its
    features are one group's patch, in the weight's own order [channels, *kernel].
    """

    groups: int
    channels: int
    kernel: tuple[int, ...]
    strides: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    auto_pad: str = "NOTSET"

    @property
    def features(self) -> int:
        """Features of a row of one group."""
        return self.channels * prod(self.kernel)

    @property
    def is_pointwise(self) -> bool:
        """Whether a patch is one position, and every position is one."""
        steps = (*self.kernel, *self.strides)
        return all(n == 1 for n in steps) and not any(self.pads)


def conv_window(node: ir.Node, weight_shape: tuple[int, ...]) -> Window:
    """The window of a Conv whose weight is [out, channels, *kernel]."""
    ints = {
        name: tuple(node.attributes[name].as_ints()) if name in node.attributes else ()
        for name in ("strides", "pads", "dilations")
    }
    group, auto = node.attributes.get("group"), node.attributes.get("auto_pad")
    return Window(
        groups=1 if group is None else group.as_int(),
        channels=weight_shape[1],
        kernel=weight_shape[2:],
        auto_pad="NOTSET" if auto is None else auto.as_string(),
        **ints,
    )


def feature_rows(emit: Emitter, value: ir.Value, window: Window | None) -> ir.Value:
    """Append nodes that lay `value` out as float32 [groups, features, rows].

    Without a window it is [..., features] as MatMul and Gemm read it, one group.
    """
    if window is None:
        rows = emit.rows(value)
        one = emit.constant(np.ones(1, np.int64))
        shape = emit("Concat", one, emit("Shape", rows), axis=0)
        return emit("Transpose", emit("Reshape", rows, shape), perm=[0, 2, 1])
    x = emit.float32(value)
    if not window.is_pointwise:
        x = _unfold(emit, x, window)
    by_position = _reshape(emit, x, [0, 0, 1, -1])
    grouped = _reshape(emit, by_position, [-1, window.groups, window.features, 0])
    return _reshape(emit, emit("Transpose", grouped, perm=[1, 2, 0, 3]), [0, 0, -1])


def _unfold(emit: Emitter, x: ir.Value, window: Window) -> ir.Value:
    """[batch * channels, kernel positions, *output]: one filter per position copies its value.

    Each channel is a sample of its own, so that the filters need not be repeated per channel.
    """
    spatial = len(window.kernel)
    single = _reshape(emit, x, [-1, 1] + [0] * spatial)
    size = prod(window.kernel)
    filters = np.eye(size, dtype=np.float32).reshape(size, 1, *window.kernel)
    attributes = {
        name: list(values)
        for name in ("strides", "dilations", "pads")
        if (values := getattr(window, name)) and (name != "pads" or window.auto_pad == "NOTSET")
    }
    return emit("Conv", single, emit.constant(filters), auto_pad=window.auto_pad, **attributes)


def _reshape(emit: Emitter, value: ir.Value, shape: list[int]) -> ir.Value:
    """Reshape; 0 keeps the size at its position, -1 takes the rest."""
    return emit("Reshape", value, emit.constant(np.asarray(shape, np.int64)))
