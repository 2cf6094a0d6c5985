"""What chooses the experts of each token: few weights, on which all others depend."""

from __future__ import annotations

import onnx_ir as ir

from lwqc.graph.moved_numbers import readers, takes_rows
from lwqc.graph.operands import stored_ints
from lwqc.model.weights import stored_tensor

# Between the product with a router's weight and the choice.
_SCORES = frozenset(
    {"Softmax", "LogSoftmax", "Sigmoid", "Softplus", "Tanh", "Relu", "Add", "Sub", "Mul", "Div",
     "Clip", "Min", "Max", "Where", "Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze",
     "Transpose"}
)  # fmt: skip
_PRODUCTS = frozenset({"MatMul", "Gemm"})


def routers(graph: ir.Graph) -> set[ir.Node]:
    """The products whose results decide which experts tokens go to."""
    found: set[ir.Node] = set()
    for node in graph:
        if node.domain != "" or node.op_type not in ("TopK", "ArgMax"):
            continue
        if _choose_experts(node.outputs[-1]):
            found |= _products_behind(node)
    return found


def _choose_experts(places: ir.Value) -> bool:
    """Whether numbers pick matrices that are multiplied, or the order of what each expert gets."""
    for _, reader, index in readers(places):
        if reader is None or reader.domain != "":
            continue
        if takes_rows(reader, index) and _are_multiplied(reader):
            return True
        if reader.op_type == "TopK" and index == 0 and _orders_parts(reader.outputs[1]):
            return True
        renamed = reader.op_type == "Gather" and index == 1 and stored_ints(reader.inputs[0])
        if renamed and _choose_experts(reader.outputs[0]):
            return True
    return False


def _are_multiplied(gather: ir.Node) -> bool:
    """Whether matrices of a stack are picked that go, perhaps transposed, into a product."""
    table = stored_tensor(gather.inputs[0])
    if table is None or len(table.shape) != 3:
        return False
    takers = {use.node for use in gather.outputs[0].uses()}
    turned = [n.outputs[0] for n in takers if n.domain == "" and n.op_type == "Transpose"]
    takers |= {use.node for value in turned for use in value.uses()}
    return any(n.domain == "" and n.op_type in ("MatMul", "Einsum") for n in takers)


def _orders_parts(order: ir.Value) -> bool:
    """Whether rows in this order are split at sizes that are computed."""
    rows = [use.node.outputs[0] for use in order.uses() if _is(use.node, "Gather") and use.idx == 1]
    parts = [use.node for value in rows for use in value.uses() if _is(use.node, "Split")]
    return any(len(n.inputs) > 1 and stored_tensor(n.inputs[1]) is None for n in parts)


def _is(node: ir.Node, op_type: str) -> bool:
    return node.domain == "" and node.op_type == op_type


def _products_behind(choice: ir.Node) -> set[ir.Node]:
    found: set[ir.Node] = set()
    waiting, seen = [choice.inputs[0]], set[ir.Value | None]()
    while waiting:
        value = waiting.pop()
        node = value.producer() if value is not None else None
        if node is None or value in seen or node.domain != "":
            continue
        seen.add(value)
        if node.op_type in _PRODUCTS:
            found.add(node)
        elif node.op_type in _SCORES:
            waiting += node.inputs
    return found
