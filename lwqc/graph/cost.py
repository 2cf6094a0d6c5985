"""Cost of each node: parameters, bytes of weights, multiply-accumulates."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from lwqc.graph.weights import stored_tensor

Shape = tuple[int, ...]
Shapes = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class NodeCost:
    """parameters, weight_bytes: of the node's stored inputs. macs: None when a shape is unknown."""

    name: str
    op: str
    parameters: int
    weight_bytes: int
    macs: int | None


@dataclass(frozen=True)
class TotalCost:
    """Sums over a graph; shared weights count once. macs: None when any node's are unknown."""

    parameters: int
    weight_bytes: int
    macs: int | None


def node_costs(graph: ir.Graph, shapes: Shapes) -> list[NodeCost]:
    """Cost of every node of the main graph and its subgraphs, in order.

    shapes: tensor name -> sizes, for computed tensors; stored tensors know theirs. A weight that
    several nodes share is counted at the first of them. Operators without a row in the table
    count no MACs.
    """
    counted: set[ir.Value] = set()
    found = []
    for node in graph.all_nodes():
        parameters = weight_bytes = 0
        for value in node.inputs:
            tensor = stored_tensor(value)
            if value is None or tensor is None or value in counted:
                continue
            counted.add(value)
            if tensor.dtype.is_floating_point() or tensor.dtype.bitwidth <= 8:
                parameters += int(tensor.size)
            weight_bytes += int(tensor.nbytes)
        macs = _macs(node, shapes)
        name = node.name or (node.outputs[0].name if node.outputs else "") or ""
        found.append(NodeCost(name, node.op_type, parameters, weight_bytes, macs))
    return found


def total(costs: Sequence[NodeCost]) -> TotalCost:
    """Sum of node costs."""
    macs = [c.macs for c in costs]
    known = [m for m in macs if m is not None]
    return TotalCost(
        sum(c.parameters for c in costs),
        sum(c.weight_bytes for c in costs),
        sum(known) if len(known) == len(macs) else None,
    )


def _macs(node: ir.Node, shapes: Shapes) -> int | None:
    rule = _RULES.get(node.op_type)
    if rule is None:
        return 0
    try:
        return rule(node, shapes)
    except _UnknownShape:
        return None


class _UnknownShape(Exception):
    """A shape that a rule needs is not known."""


def _shape(value: ir.Value | None, shapes: Shapes) -> Shape:
    if value is not None:
        if value.name and value.name in shapes:
            return tuple(shapes[value.name])
        if value.shape is not None and all(isinstance(d, int) for d in value.shape):
            return tuple(d for d in value.shape if isinstance(d, int))
    raise _UnknownShape


def _contraction(node: ir.Node, shapes: Shapes) -> int:
    """Outputs times the length of the contracted axis, the last one of the left operand."""
    left, output = _shape(node.inputs[0], shapes), _shape(node.outputs[0], shapes)
    transposed = "transA" in node.attributes and node.attributes["transA"].as_int()
    return math.prod(output) * left[0 if transposed else -1]


def _convolution(weight: int) -> Callable[[ir.Node, Shapes], int]:
    def rule(node: ir.Node, shapes: Shapes) -> int:
        """Outputs times inputs per output: a kernel of [out, in / groups, ...]."""
        kernel = _shape(node.inputs[weight], shapes)
        return math.prod(_shape(node.outputs[0], shapes)) * math.prod(kernel[1:])

    return rule


def _transposed_convolution(node: ir.Node, shapes: Shapes) -> int:
    """Inputs times outputs per input: a kernel of [in, out / groups, ...]."""
    kernel = _shape(node.inputs[1], shapes)
    return math.prod(_shape(node.inputs[0], shapes)) * math.prod(kernel[1:])


def _recurrent(node: ir.Node, shapes: Shapes) -> int:
    """Both weight matrices once per step and sample; X is [steps, batch, features]."""
    steps, batch, _ = _shape(node.inputs[0], shapes)
    matrices = sum(math.prod(_shape(node.inputs[i], shapes)) for i in (1, 2))
    return steps * batch * matrices


def _block_matmul(node: ir.Node, shapes: Shapes) -> int:
    return math.prod(_shape(node.inputs[0], shapes)) * node.attributes["N"].as_int()


def _einsum(node: ir.Node, shapes: Shapes) -> int:
    """Product of the sizes of all letters."""
    equation = node.attributes["equation"].as_string().replace(" ", "")
    if "." in equation:
        raise _UnknownShape
    sizes: dict[str, int] = {}
    for term, value in zip(equation.split("->")[0].split(","), node.inputs, strict=True):
        sizes.update(zip(term, _shape(value, shapes), strict=True))
    return math.prod(sizes.values())


# One row per operator that multiplies and accumulates.
_RULES: Mapping[str, Callable[[ir.Node, Shapes], int]] = {
    "MatMul": _contraction,
    "FusedMatMul": _contraction,
    "Gemm": _contraction,
    "MatMulInteger": _contraction,
    "MatMulIntegerToFloat": _contraction,
    "DynamicQuantizeMatMul": _contraction,
    "QLinearMatMul": _contraction,
    "QGemm": _contraction,
    "MatMulNBits": _block_matmul,
    "Conv": _convolution(1),
    "FusedConv": _convolution(1),
    "ConvInteger": _convolution(1),
    "QLinearConv": _convolution(3),
    "ConvTranspose": _transposed_convolution,
    "LSTM": _recurrent,
    "GRU": _recurrent,
    "RNN": _recurrent,
    "Einsum": _einsum,
}
