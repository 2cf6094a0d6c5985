"""Whole numbers that are moved and stay what they are: ids of tokens, places along an axis."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from lwqc.model.weights import is_float, stored_tensor

INTEGERS = frozenset({ir.DataType.INT64, ir.DataType.INT32})
SIZES = frozenset({"Shape", "Size"})  # of what reads sizes alone
# What leaves numbers as they are, whatever happens to their axes; they are the first operand.
_MOVES = frozenset(
    {"Identity", "Cast", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Flatten", "Expand",
     "Slice"}
)  # fmt: skip


def moves(node: ir.Node) -> bool:
    """Whether the first output holds the whole numbers of the first operand, and no others."""
    if node.domain != "" or node.op_type not in _MOVES:
        return False
    return node.op_type != "Cast" or node.outputs[0].dtype in INTEGERS


def origin(value: ir.Value | None) -> ir.Value | None:
    """Where the numbers of a value were before they were moved."""
    while value is not None and (node := value.producer()) is not None and moves(node):
        value = node.inputs[0]
    return value


def readers(value: ir.Value) -> Iterator[tuple[ir.Value, ir.Node | None, int]]:
    """What reads the numbers of a value for themselves, wherever they are moved to.

    The value read, the node and its operand; no node where it is an output of the graph. Reading
    sizes is left out.
    """
    waiting, seen = [value], {value}
    while waiting:
        here = waiting.pop()
        if here.is_graph_output():
            yield here, None, 0
        for use in here.uses():
            node = use.node
            if node.domain == "" and node.op_type in SIZES:
                continue
            if use.idx == 0 and moves(node):
                if node.outputs[0] not in seen:
                    seen.add(node.outputs[0])
                    waiting.append(node.outputs[0])
            else:
                yield here, node, use.idx


def takes_rows(node: ir.Node, index: int) -> bool:
    """Whether an operand of a node says which rows of a stored table of floats it takes."""
    tensor = stored_tensor(node.inputs[0]) if node.inputs else None
    if node.domain != "" or index != 1 or tensor is None or not is_float(tensor):
        return False
    rank = len(tensor.shape)
    if rank < 2:
        return False
    if node.op_type == "Gather":
        axis = node.attributes.get("axis")
        return axis is None or axis.as_int() in (0, -rank)
    if node.op_type == "GatherND":
        batch, places = node.attributes.get("batch_dims"), node.inputs[1]
        single = places is not None and places.shape is not None and places.shape[-1] == 1
        return single and (batch is None or batch.as_int() == 0)
    return False
