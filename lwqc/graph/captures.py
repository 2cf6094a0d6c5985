"""What the bodies of If, Loop and Scan read from the graph around them."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir
from onnx_ir.analysis import analyze_implicit_usage


def captures(graph: ir.Graph) -> Iterator[tuple[ir.Node, list[ir.Value]]]:
    """Nodes with subgraphs, each with the outer values that they read."""
    used = analyze_implicit_usage(graph)
    for node in graph:
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                yield node, list(used[attribute.as_graph()])
            elif attribute.type == ir.AttributeType.GRAPHS:
                yield node, [v for g in attribute.as_graphs() for v in used[g]]


def feeding_bodies(graph: ir.Graph) -> set[ir.Value]:
    """Values of a graph that bodies read, and all values that those are computed from."""
    todo = [v for _, values in captures(graph) for v in values]
    found: set[ir.Value] = set()
    while todo:
        value = todo.pop()
        if value not in found:
            found.add(value)
            node = value.producer()
            todo += [v for v in node.inputs if v is not None] if node is not None else []
    return found
