"""Whole numbers that come from shapes alone, which the runtime computes on the CPU everywhere."""

from __future__ import annotations

from collections.abc import Set

import onnx_ir as ir

from lwqc.model.weights import stored_tensor


def from_sizes(node: ir.Node, sizes: Set[ir.Value]) -> bool:
    """Whether a node computes on shapes alone.

    sizes: the values that are known to come from shapes, of the nodes in front.
    """
    if node.domain != "":
        return False
    if node.op_type in ("Shape", "Size"):
        return True
    given = [v for v in node.inputs if v is not None and stored_tensor(v) is None]
    if node.op_type == "Range" or not given or any(v not in sizes for v in given):
        return False
    return all(v.dtype is not None and v.dtype.is_integer() for v in node.outputs)


def on_sizes(graph: ir.Graph) -> set[ir.Node]:
    """The nodes of a graph that compute on shapes alone."""
    sizes: set[ir.Value] = set()
    found = set()
    for node in graph:
        if from_sizes(node, sizes):
            sizes.update(node.outputs)
            found.add(node)
    return found
