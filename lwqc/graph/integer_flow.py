"""Which tensors should be 8-bit so that statically quantized convolutions form no islands.

A convolution runs on integers only when its input and its output (after an absorbed Relu or Clip)
are quantized. Operators with an integer form between such tensors are drawn in, forwards and
backwards, so that values stay in 8 bits from one convolution to the next. Behind the last one they
are float: there 8 bits save little, and mix what outputs need apart, as the boxes and scores of a
detector.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Container, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from lwqc.graph.captures import feeding_bodies
from lwqc.graph.sites import Site
from lwqc.model.weights import stored_tensor, trace_weight

ABSORBED = frozenset({"Relu", "Clip"})
# Of these integer kernels can be made, see `lwqc.passes.hard_gate`.
SATURATING = frozenset({"HardSigmoid", "HardSwish"})
# Integer kernels with ranges of their own for inputs and output.
COMPUTE = SATURATING | {
    *("Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool", "Sigmoid", "LeakyRelu")
}
_TWO = frozenset({"Add", "Mul"})
# Operators that move codes unchanged: input and outputs share one range.
_MOVE = frozenset(
    {"MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze"}
    | {"Split", "Slice", "DepthToSpace"}
)


@dataclass
class IntegerFlow:
    """Tensors to quantize and convolutions that cannot be.

    tensors: tensor name -> name of the tensor whose range it takes (itself, unless codes are only
    moved). refused: site name -> reason.
    """

    tensors: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)


def integer_flow(graph: ir.Graph, sites: Collection[Site]) -> IntegerFlow:
    """Find the tensors to quantize for the given convolution sites of `graph`."""
    flow = IntegerFlow()
    # onnxruntime 1.31.1 can abort where pairs stand in front of what a body reads.
    barred = feeding_bodies(graph) if sites else set()
    quantized: set[ir.Value] = set()
    for site in sites:
        reason = next((r for use in site.uses if (r := _obstacle(graph, use.node, barred))), None)
        if reason:
            flow.refused[site.name] = reason
            continue
        for use in site.uses:
            quantized |= {_value(use.node.inputs[0]), absorbed_output(use.node)}
    nodes = [node for node in graph if node.domain == ""]
    for node in reversed(nodes):
        if node.op_type in COMPUTE and absorbed_output(node) in quantized:
            inputs = _data_inputs(node)
            if any(v in quantized for v in inputs) and barred.isdisjoint(inputs):
                quantized |= set(inputs)
    ahead = _ahead(nodes, quantized)
    for node in nodes:
        if _joins(node, quantized):
            outputs = [absorbed_output(node)] if node.op_type in COMPUTE else moved(node)
            if not ahead.isdisjoint(outputs):
                quantized |= set(outputs) - barred
    owner: dict[ir.Value, ir.Value] = {}
    for node in nodes:
        if moves_codes(node) and node.inputs[0] in quantized:
            source = _value(node.inputs[0])
            owner |= {v: owner.get(source, source) for v in moved(node) if v in quantized}
    flow.tensors = {v.name or "": owner.get(v, v).name or "" for v in quantized}
    flow.tensors = dict(sorted(flow.tensors.items()))
    return flow


def _ahead(nodes: Sequence[ir.Node], quantized: Collection[ir.Value]) -> set[ir.Value]:
    """Values that a convolution on integers comes of; behind the last one all stays float."""
    found = set(quantized)
    for node in reversed(nodes):
        if node.op_type in COMPUTE and absorbed_output(node) in found:
            found |= {*_data_inputs(node), *node.outputs}
        elif moves_codes(node) and not found.isdisjoint(moved(node)):
            found |= {_value(node.inputs[0])}
    return found


def absorbed_output(node: ir.Node) -> ir.Value:
    """The node's output, or that of a Relu or Clip that is its only reader."""
    value = node.outputs[0]
    uses = list(value.uses())
    if len(uses) == 1 and not value.is_graph_output():
        reader = uses[0].node
        if reader.domain == "" and reader.op_type in ABSORBED and reader.graph is node.graph:
            return reader.outputs[0]
    return value


def _obstacle(graph: ir.Graph, node: ir.Node, barred: Container[ir.Value]) -> str | None:
    if node.graph is not graph:
        return "is inside a subgraph"
    if node.inputs[0] in barred or absorbed_output(node) in barred:
        return "feeds the body of an If, Loop or Scan"
    if absorbed_output(node).is_graph_output():
        return "its output is a graph output"
    if trace_weight(node.inputs[0]) is not None:
        return "its input is constant"
    return None


def _joins(node: ir.Node, quantized: set[ir.Value]) -> bool:
    if moves_codes(node):
        given = any(v.is_graph_output() for v in moved(node))
        return node.inputs[0] in quantized and not given
    inputs = _data_inputs(node)
    if node.op_type not in COMPUTE or not _has_kernel(node, inputs):
        return False
    given = absorbed_output(node).is_graph_output()
    return bool(inputs) and all(v in quantized for v in inputs) and not given


def moved(node: ir.Node) -> Sequence[ir.Value]:
    """What of the outputs of an operator that moves codes are codes: not places of maxima."""
    return node.outputs if node.op_type == "Split" else node.outputs[:1]


def moves_codes(node: ir.Node) -> bool:
    """Whether an operator only moves numbers of its first input, codes as well as floats.

    Resize does where it repeats them.
    """
    if node.domain != "":
        return False
    if node.op_type == "Resize":
        mode = node.attributes.get("mode")
        return mode is None or mode.as_string() == "nearest"
    return node.op_type in _MOVE


def _has_kernel(node: ir.Node, inputs: Collection[ir.Value]) -> bool:
    """Whether a sum or product is one of two tensors, or of one and a number."""
    return node.op_type not in _TWO or len(inputs) == 2 or number_beside(node) is not None


def number_beside(node: ir.Node) -> int | None:
    """Which operand of a sum or product of two is a stored number that codes can hold; or None.

    The other one is computed, and has as many axes at least.
    """
    if node.domain != "" or node.op_type not in _TWO or len(node.inputs) != 2:
        return None
    for index, value in enumerate(node.inputs):
        tensor, other = stored_tensor(value), node.inputs[1 - index]
        if tensor is None or tensor.size != 1 or tensor.dtype != ir.DataType.FLOAT:
            continue
        if other is None or other.shape is None or len(other.shape) < len(tensor.shape):
            return None
        return index if math.isfinite(float(tensor.numpy().reshape(()))) else None
    return None


def _data_inputs(node: ir.Node) -> list[ir.Value]:
    return [v for v in node.inputs if v is not None and trace_weight(v) is None]


def _value(value: ir.Value | None) -> ir.Value:
    if value is None:
        raise ValueError("a convolution without an input")
    return value
