"""What chooses the experts of each token: few weights, on which all others depend."""

from __future__ import annotations

import onnx_ir as ir

from lwqc.graph.moved_numbers import readers, takes_rows
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
    """Whether numbers pick matrices of a stored table, or tokens are ordered by them."""
    for _, reader, index in readers(places):
        if reader is None or reader.domain != "":
            continue
        if takes_rows(reader, index) and len(_sizes(reader)) > 2:
            return True
        if reader.op_type == "TopK" and index == 0:
            return True
    return False


def _sizes(gather: ir.Node) -> tuple[object, ...]:
    tensor = stored_tensor(gather.inputs[0])
    return () if tensor is None else tuple(tensor.shape)


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
