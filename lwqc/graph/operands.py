"""Small questions about what a node reads."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from lwqc.model.weights import stored_tensor


def made_by(value: ir.Value | None, *op_types: str) -> ir.Node | None:
    """The node that makes a value, if it is a standard operator of one of these types."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.domain == "" and node.op_type in op_types else None


def either_way(node: ir.Node) -> Iterator[tuple[ir.Value, ir.Value]]:
    """Both orders of the two inputs of a commutative node."""
    a, b = (*node.inputs, None, None)[:2]
    if a is not None and b is not None:
        yield a, b
        yield b, a


def stored_ints(value: ir.Value | None) -> list[int] | None:
    """A stored tensor of integers, flat."""
    tensor = stored_tensor(value)
    if tensor is None or tensor.dtype not in (ir.DataType.INT64, ir.DataType.INT32):
        return None
    return [int(number) for number in tensor.numpy().ravel()]


def axis_of(node: ir.Node, rank: int, default: int = 0) -> int:
    """The attribute `axis`, counted from the front."""
    attribute = node.attributes.get("axis")
    axis = default if attribute is None else attribute.as_int()
    return axis % rank if rank else axis


def only_reader(value: ir.Value) -> ir.Node | None:
    """The node that alone reads a value; None where there are more, or it is a graph output."""
    readers = {use.node for use in value.uses()}
    return readers.pop() if len(readers) == 1 and not value.is_graph_output() else None


def reduced_axes(node: ir.Node) -> list[int] | None:
    """Axes that a reduction names, as an attribute or a stored input; None where it does not."""
    if "axes" in node.attributes:
        return list(node.attributes["axes"].as_ints())
    return stored_ints(node.inputs[1]) if len(node.inputs) > 1 else None


def pads(node: ir.Node) -> bool:
    """Whether a convolution or pooling pads its input."""
    amounts, auto = node.attributes.get("pads"), node.attributes.get("auto_pad")
    same = auto is not None and auto.as_string().startswith("SAME")
    return same or (amounts is not None and any(amounts.as_ints()))
