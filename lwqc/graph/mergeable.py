"""Linear layers that can be merged: their weight is stored, in float, and read by them alone."""

from __future__ import annotations

from collections.abc import Collection, Hashable
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from lwqc.graph.consumers import bias_operand
from lwqc.graph.linear_operand import Operand, linear_operand
from lwqc.model.weights import Weight, static_shape, trace_weight

_SINGLE = {ir.AttributeType.INT, ir.AttributeType.FLOAT, ir.AttributeType.STRING}
_LISTS = {ir.AttributeType.INTS, ir.AttributeType.FLOATS, ir.AttributeType.STRINGS}
PLAIN = frozenset({"Transpose", "Identity"})  # steps to an operand that need nothing but numbers


@dataclass(frozen=True, eq=False)
class Layer:
    """A linear layer that can be merged with others of the same `key`.

    axis: of its output channels, counted from the end. bias: its own operand.
    """

    operand: Operand
    axis: int
    bias: Weight | None
    key: tuple[Any, ...]

    @property
    def node(self) -> ir.Node:
        """The MatMul, Gemm or Conv."""
        return self.operand.node

    @property
    def output(self) -> ir.Value:
        """What it computes."""
        return self.node.outputs[0]


def mergeable(node: ir.Node) -> Layer | str | None:
    """A layer that can be merged, why a linear layer cannot be, or None for other nodes."""
    operand = linear_operand(node)
    if not isinstance(operand, Operand):
        return operand
    if any(step.op_type not in PLAIN for step in operand.weight.steps):
        return "its weight is cast"
    if operand.users > 1:
        return f"its weight {operand.weight.name} has other readers"
    has_bias = len(node.inputs) > 2 and node.inputs[2] is not None
    if has_bias and bias_operand(node, operand.out) is None:
        return "its bias is not stored per channel"
    bias = trace_weight(node.inputs[2]) if has_bias else None
    kernel = operand.shape[2:]
    rank = None if bias is None else len(static_shape(bias.tensor))
    key = (attribute_key(node), operand.weight.tensor.dtype, kernel, operand.out_axis, rank)
    axis = -1 if node.op_type != "Conv" else 1 - len(operand.shape)
    return Layer(operand, axis, bias, key)


def attribute_key(node: ir.Node, without: Collection[str] = ()) -> tuple[Any, ...]:
    """Operator and attributes, for comparisons."""
    attributes = ((k, _comparable(a)) for k, a in sorted(node.attributes.items()))
    return (node.op_identifier(), tuple(pair for pair in attributes if pair[0] not in without))


def _comparable(attribute: ir.Attr) -> Hashable:
    """Equal for equal numbers and strings; what else there is equals only itself."""
    if attribute.type in _LISTS:
        return tuple(attribute.value)
    if attribute.type == ir.AttributeType.TENSOR:
        tensor = attribute.value
        return tensor.dtype, static_shape(tensor), tensor.tobytes()
    return attribute.value if attribute.type in _SINGLE else id(attribute)
