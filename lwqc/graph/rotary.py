"""Rotary position embedding in a graph: x * cos + (-second half, first half of x) * sin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from lwqc.graph.integers import Integers
from lwqc.graph.operands import axis_of, either_way, made_by, stored_ints
from lwqc.graph.sampled import Sampled
from lwqc.model.weights import stored_tensor

_ELEMENTWISE = frozenset({"Cos", "Sin", "Cast", "Identity"})


@dataclass(frozen=True, eq=False)
class Rotary:
    """out = x * cos + rotated(x) * sin.

    x: [batch, heads, tokens, size]. cos, sin: [tokens, size], or [batch or 1, 1, tokens, size];
    their two halves of the last axis are equal.
    """

    out: ir.Node
    x: ir.Value
    cos: ir.Value
    sin: ir.Value


def find_rotary(graph: ir.Graph, shapes: Mapping[str, Sampled]) -> list[Rotary]:
    """The rotations of a graph, in order."""
    integers = Integers(graph, shapes)
    adds = [node for node in graph if (node.domain, node.op_type) == ("", "Add")]
    found = (_rotary(node, shapes, integers) for node in adds)
    return [rotary for rotary in found if rotary is not None]


def _rotary(add: ir.Node, shapes: Mapping[str, Sampled], integers: Integers) -> Rotary | None:
    for straight, turned in either_way(add):
        products = made_by(straight, "Mul"), made_by(turned, "Mul")
        if products[0] is None or products[1] is None:
            continue
        for rotated, sin in either_way(products[1]):
            x = _rotated(rotated, shapes, integers)
            for value, cos in either_way(products[0]):
                if value is x and _is_table(cos, x, shapes) and _is_table(sin, x, shapes):
                    return Rotary(add, x, cos, sin)
    return None


def _rotated(value: ir.Value, shapes: Mapping[str, Sampled], integers: Integers) -> ir.Value | None:
    """The x of Concat(-second half of x, first half of x) over the last of four axes."""
    joined = made_by(value, "Concat")
    sizes = shapes.get(value.name or "")
    if joined is None or sizes is None or sizes.rank != 4 or len(joined.inputs) != 2:
        return None
    negative = made_by(joined.inputs[0], "Neg")
    if negative is None or axis_of(joined, 4) != 3 or not sizes.static(3) or sizes.first[3] % 2:
        return None
    half = sizes.first[3] // 2
    second = _part(negative.inputs[0], half, integers)
    first = _part(joined.inputs[1], half, integers)
    if first is None or second is None or first[0] is not second[0]:
        return None
    own = shapes.get(first[0].name or "")
    if (first[1], second[1]) != (0, half) or own != sizes:
        return None
    return first[0] if first[0].dtype in (None, ir.DataType.FLOAT) else None


def _part(value: ir.Value | None, half: int, integers: Integers) -> tuple[ir.Value, int] | None:
    """What a slice of `half` elements of the last of four axes is taken from, and its start."""
    node = made_by(value, "Split", "Slice")
    if node is None or node.inputs[0] is None or value is None:
        return None
    source = node.inputs[0]
    if node.op_type == "Split":
        parts = stored_ints(node.inputs[1]) if len(node.inputs) > 1 else None
        equal = len(node.outputs) == 2 and (parts is None or parts == [half, half])
        return (source, (value.index() or 0) * half) if equal and axis_of(node, 4) == 3 else None
    numbers = [integers.static(v) for v in node.inputs[1:]]
    known = [int(n.reshape(-1)[0]) for n in numbers if n is not None and n.size == 1]
    if len(numbers) < 3 or len(known) < len(numbers):
        return None
    start, end, axis, *steps = known
    if axis not in (3, -1) or any(step != 1 for step in steps):
        return None
    start, end = (n + 2 * half if n < 0 else n for n in (start, end))
    return (source, start) if min(end, 2 * half) - start == half else None


def _is_table(value: ir.Value, x: ir.Value, shapes: Mapping[str, Sampled]) -> bool:
    tensor, own, sizes = stored_tensor(value), shapes.get(value.name or ""), shapes[x.name or ""]
    if tensor is not None or own is None or own.rank not in (2, 4):
        return False  # stored ones have a fixed number of tokens
    for mine, full in ((own.first, sizes.first), (own.second, sizes.second)):
        if mine[-2:] != full[-2:] or mine[:-2] not in ((), (1, 1), (full[0], 1)):
            return False
    return has_equal_halves(value, shapes)


def has_equal_halves(value: ir.Value | None, shapes: Mapping[str, Sampled]) -> bool:
    """Whether both halves of the last axis are known to hold the same."""
    if value is None:
        return False
    tensor = stored_tensor(value)
    if tensor is not None:
        numbers = tensor.numpy()
        half = numbers.shape[-1] // 2 if numbers.ndim else 0
        same = np.array_equal(numbers[..., :half], numbers[..., half:]) if half else False
        return bool(same)
    node = value.producer()
    own = shapes.get(value.name or "")
    if node is None or node.domain != "" or own is None or own.rank == 0:
        return False
    data = node.inputs[0]
    before = shapes.get(data.name or "") if data is not None else None
    if node.op_type == "Concat":
        same = len(node.inputs) == 2 and node.inputs[0] is node.inputs[1]
        return same and axis_of(node, own.rank) == own.rank - 1
    if node.op_type in _ELEMENTWISE:
        return has_equal_halves(data, shapes)
    if node.op_type in ("Mul", "Div"):
        return _scaled_halves(node, shapes)
    if before is None or before.rank == 0 or not before.static(before.rank - 1):
        return False
    last = before.first[-1] == own.first[-1] and own.static(own.rank - 1)
    if node.op_type in ("Unsqueeze", "Squeeze", "Reshape", "Expand"):
        return last and before.first[-1] > 1 and has_equal_halves(data, shapes)
    if node.op_type == "Gather":
        return axis_of(node, before.rank) < before.rank - 1 and has_equal_halves(data, shapes)
    if node.op_type == "Slice":
        axes = stored_ints(node.inputs[3]) if len(node.inputs) > 3 else None
        apart = axes is not None and all(a % before.rank < before.rank - 1 for a in axes)
        return apart and has_equal_halves(data, shapes)
    return False


def _scaled_halves(node: ir.Node, shapes: Mapping[str, Sampled]) -> bool:
    for value, other in either_way(node):
        tensor = stored_tensor(other)
        if tensor is not None and tensor.size == 1:
            return (node.op_type == "Mul" or value is node.inputs[0]) and has_equal_halves(
                value, shapes
            )
    return False
