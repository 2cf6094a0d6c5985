"""Integers that the graph computes from constants and shapes, in both settings of `Sampled`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.graph.sampled import Sampled
from lwqc.model.weights import stored_tensor

Ints = NDArray[Any]
_MAX_ELEMENTS = 1 << 22  # index tables are small; anything larger is data
_MAX_CODES = 1 << 12  # of 8 bits and less, which more of are a weight, and not read for sizes
_INTEGERS = frozenset(
    {ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL, ir.DataType.UINT8, ir.DataType.INT8}
)
_Evaluate = Callable[[ir.Node, Sequence[Ints]], Ints]


class Integers:
    """Values known before the model runs."""

    def __init__(self, nodes: Iterable[ir.Node], shapes: Mapping[str, Sampled]) -> None:
        """Evaluate the shape arithmetic of nodes in topological order."""
        self._known: dict[ir.Value, tuple[Ints, Ints]] = {}
        self._constants: dict[ir.Value, Ints | None] = {}  # each is read once: `_stored` is slow
        for node in nodes:
            self.add(node, shapes)

    def add(self, node: ir.Node, shapes: Mapping[str, Sampled]) -> None:
        """Evaluate one more node, if all that it reads is known."""
        found = _evaluated(node, shapes, self)
        if found is not None:
            self._known[node.outputs[0]] = found

    def both(self, value: ir.Value | None) -> tuple[Ints, Ints] | None:
        """Values in the two settings; None when they depend on data."""
        if value is None:
            return None
        if value in self._known:
            return self._known[value]
        if value not in self._constants:
            self._constants[value] = _stored(value)
        stored = self._constants[value]
        return None if stored is None else (stored, stored)

    def static(self, value: ir.Value | None) -> Ints | None:
        """Values that do not depend on the setting; None when they do or are not known."""
        found = self.both(value)
        if found is None or not np.array_equal(*found):
            return None
        return found[0]


def _stored(value: ir.Value) -> Ints | None:
    tensor = stored_tensor(value)
    if tensor is None:
        node = value.producer()
        if node is None or node.op_type != "Constant" or node.domain:
            return None
        for name in ("value_int", "value_ints"):
            if name in node.attributes:
                return np.asarray(node.attributes[name].value, np.int64)
        return None
    if tensor.dtype not in _INTEGERS:
        return None
    if tensor.size > (_MAX_CODES if tensor.dtype.bitwidth <= 8 else _MAX_ELEMENTS):
        return None
    return tensor.numpy()


def _evaluated(
    node: ir.Node, shapes: Mapping[str, Sampled], known: Integers
) -> tuple[Ints, Ints] | None:
    if node.domain:
        return None
    if node.op_type in ("Shape", "Size"):
        sampled = shapes.get(node.inputs[0].name or "") if node.inputs[0] is not None else None
        if sampled is None:
            return None
        return _shape(node, sampled.first), _shape(node, sampled.second)
    evaluate = _EVALUATE.get(node.op_type)
    if evaluate is None or not node.inputs:
        return None
    pairs = [known.both(value) for value in node.inputs if value is not None]
    if any(pair is None for pair in pairs):
        return None
    first, second = (np_values(evaluate, node, [p[i] for p in pairs if p]) for i in (0, 1))
    if first is None or second is None:
        return None
    return first, second


def np_values(evaluate: _Evaluate, node: ir.Node, values: Sequence[Ints]) -> Ints | None:
    """One evaluation; None where the operands do not fit or the result is too large."""
    try:
        result = evaluate(node, values)
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError):
        return None
    return result if result.size <= _MAX_ELEMENTS else None


def _shape(node: ir.Node, sizes: Sequence[int]) -> Ints:
    if node.op_type == "Size":
        return np.asarray(np.prod(sizes), np.int64)
    start = node.attributes["start"].as_int() if "start" in node.attributes else None
    end = node.attributes["end"].as_int() if "end" in node.attributes else None
    return np.asarray(sizes[start:end], np.int64)


def _int(node: ir.Node, name: str, default: int) -> int:
    return node.attributes[name].as_int() if name in node.attributes else default


def _axes(node: ir.Node, values: Sequence[Ints]) -> list[int] | None:
    if len(values) > 1:
        return [int(a) for a in values[1]]
    return list(node.attributes["axes"].as_ints()) if "axes" in node.attributes else None


def _unsqueeze(node: ir.Node, values: Sequence[Ints]) -> Ints:
    return np.expand_dims(values[0], tuple(_axes(node, values) or ()))


def _squeeze(node: ir.Node, values: Sequence[Ints]) -> Ints:
    axes = _axes(node, values)
    return np.squeeze(values[0], None if axes is None else tuple(axes))


def _slice(node: ir.Node, values: Sequence[Ints]) -> Ints:
    data, starts, ends = values[:3]
    axes = values[3] if len(values) > 3 else np.arange(starts.size)
    steps = values[4] if len(values) > 4 else np.ones(starts.size, np.int64)
    index = [slice(None)] * data.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        stop = None if step < 0 and end < -data.shape[axis] else int(end)
        index[int(axis)] = slice(int(start), stop, int(step))
    return data[tuple(index)]


def _reshape(node: ir.Node, values: Sequence[Ints]) -> Ints:
    data, target = values
    sizes = [data.shape[i] if s == 0 else int(s) for i, s in enumerate(target)]
    return data.reshape(sizes)


def _divide(node: ir.Node, values: Sequence[Ints]) -> Ints:
    quotient = np.trunc(values[0] / values[1])  # ONNX truncates, numpy floors
    return np.asarray(quotient).astype(values[0].dtype)


def _constant_of_shape(node: ir.Node, values: Sequence[Ints]) -> Ints:
    fill = node.attributes["value"].as_tensor().numpy() if "value" in node.attributes else None
    if fill is None or fill.dtype.kind not in "iub" or np.prod(values[0]) > _MAX_ELEMENTS:
        raise ValueError("not integers")
    return np.full(tuple(values[0]), fill.ravel()[0])


def _expand(node: ir.Node, values: Sequence[Ints]) -> Ints:
    sizes = np.broadcast_shapes(values[0].shape, tuple(values[1]))
    if np.prod(sizes) > _MAX_ELEMENTS:
        raise ValueError("too large")
    return np.broadcast_to(values[0], sizes)


def _cast(node: ir.Node, values: Sequence[Ints]) -> Ints:
    dtype = ir.DataType(node.attributes["to"].as_int())
    if dtype not in _INTEGERS:
        raise ValueError("not integers")
    return values[0].astype(dtype.numpy())


def _range(node: ir.Node, values: Sequence[Ints]) -> Ints:
    start, stop, step = (int(v) for v in values)
    if (stop - start) / step > _MAX_ELEMENTS:
        raise ValueError("too large")
    return np.arange(start, stop, step)


def _transpose(node: ir.Node, values: Sequence[Ints]) -> Ints:
    perm = node.attributes["perm"].as_ints() if "perm" in node.attributes else None
    return values[0].transpose(perm)


def _reduce_prod(node: ir.Node, values: Sequence[Ints]) -> Ints:
    axes = _axes(node, values)
    keep = bool(_int(node, "keepdims", 1))
    return np.asarray(np.prod(values[0], None if axes is None else tuple(axes), keepdims=keep))


def _of(function: Callable[..., Any]) -> _Evaluate:
    return lambda node, values: np.asarray(function(*values))


_EVALUATE: dict[str, _Evaluate] = {
    "Add": _of(np.add),
    "Sub": _of(np.subtract),
    "Mul": _of(np.multiply),
    "Div": _divide,
    "Neg": _of(np.negative),
    "Abs": _of(np.abs),
    "Equal": _of(np.equal),
    "Less": _of(np.less),
    "Greater": _of(np.greater),
    "Not": _of(np.logical_not),
    "And": _of(np.logical_and),
    "Or": _of(np.logical_or),
    "Where": _of(np.where),
    "Identity": _of(lambda v: v),
    "Min": _of(lambda *v: np.minimum.reduce(np.broadcast_arrays(*v))),
    "Max": _of(lambda *v: np.maximum.reduce(np.broadcast_arrays(*v))),
    "Cast": _cast,
    "Concat": lambda node, v: np.concatenate(v, _int(node, "axis", 0)),
    "Gather": lambda node, v: np.asarray(np.take(v[0], v[1], _int(node, "axis", 0))),
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Slice": _slice,
    "Reshape": _reshape,
    "Transpose": _transpose,
    "ConstantOfShape": _constant_of_shape,
    "Expand": _expand,
    "Range": _range,
    "ReduceProd": _reduce_prod,
}
