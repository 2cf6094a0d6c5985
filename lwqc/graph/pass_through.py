"""Nodes that hand numbers of inputs or of the file on to graph outputs without computing."""

from __future__ import annotations

import onnx_ir as ir

from lwqc.graph.float_slots import is_float32
from lwqc.model.weights import stored_tensor

_MOVES = frozenset(
    {
        "Concat", "ConstantOfShape", "Expand", "Flatten", "Gather", "GatherElements", "GatherND",
        "Identity", "Reshape", "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
    }
)  # fmt: skip


def pass_through(graph: ir.Graph) -> set[ir.Node]:
    """Nodes between float32 outputs and where their numbers come from, unless something computes.

    A Cast from another type counts as a source: its numbers are exact in float32.
    """
    found: set[ir.Node] = set()
    for value in graph.outputs:
        if is_float32(value):
            found |= _chain(value) or set()
    return found


def _chain(output: ir.Value) -> set[ir.Node] | None:
    """Nodes that a value comes through, or None where one of them computes."""
    nodes: set[ir.Node] = set()
    todo = [output]
    while todo:
        value = todo.pop()
        node = value.producer()
        if value.is_graph_input() or stored_tensor(value) is not None or node in nodes:
            continue
        if node is None or node.domain != "":
            return None
        if node.op_type == "Cast" and not _is_float(node.inputs[0]):
            nodes.add(node)
        elif node.op_type in _MOVES:
            nodes.add(node)
            todo += [v for v in node.inputs if v is not None and is_float32(v)]
        else:
            return None
    return nodes


def _is_float(value: ir.Value | None) -> bool:
    return value is None or value.dtype is None or value.dtype.is_floating_point()
