"""Which values of a pruned model differ from the original's, and how deep behind each other."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import onnx_ir as ir

from lwqc.model.weights import trace_weight


class Changes:
    """Values behind a removed channel, found by visiting the nodes in graph order.

    A node changes its outputs if it reads a changed value or a resized tensor, or is new.
    """

    def __init__(self, original: ir.Model, resized: Collection[str]) -> None:
        """resized: names of stored tensors that lost slices."""
        graph = original.graph
        self._known = {v.name for node in graph for v in node.outputs} | set(graph.initializers)
        self._resized = set(resized)
        self._depth: dict[ir.Value, int] = {}  # of changed values only

    def visit(self, node: ir.Node, layer: bool) -> None:
        """Pass changes on; what is behind a `layer` is one deeper than what is before it."""
        if all(trace_weight(v) is not None for v in node.outputs):
            return  # a constant: its reader sees what was resized
        depths = [self._depth[v] for v in inputs(node) if v in self._depth]
        if depths or self._changes_by_itself(node):
            depth = max(depths, default=0) + layer
            self._depth.update(dict.fromkeys(node.outputs, depth))

    def changed(self, value: ir.Value | None) -> bool:
        """Whether its content may differ."""
        return value in self._depth

    def reads_changed(self, node: ir.Node) -> bool:
        """Whether an operand of a node, or a value that its bodies use, may differ."""
        return any(self.changed(v) for v in inputs(node))

    def depth(self, value: ir.Value) -> int:
        """How many layers lie on the longest way to a value."""
        return self._depth.get(value, 0)

    def _changes_by_itself(self, node: ir.Node) -> bool:
        if any(v.name not in self._known for v in node.outputs):
            return True
        weights = (trace_weight(v) for v in inputs(node))
        return any(w and (w.name in self._resized or w.name not in self._known) for w in weights)


def inputs(node: ir.Node) -> Iterator[ir.Value]:
    """Operands of a node, and whatever the nodes of its bodies read."""
    yield from (v for v in node.inputs if v is not None)
    for body in bodies(node):
        for inner in body.all_nodes():
            yield from (v for v in inner.inputs if v is not None)


def bodies(node: ir.Node) -> Iterator[ir.Graph]:
    """Graphs that an If, Loop or Scan runs."""
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()
