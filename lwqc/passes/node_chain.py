"""Nodes that are added one after the other beside a node of the graph."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from lwqc.model.edit import add_constant
from lwqc.model.names import unique_name

_AXES_OPERAND_FROM = {"ReduceMean": 18, "ReduceSum": 13}  # opset; an attribute before


class NodeChain:
    """Adds nodes right in front of or behind one, named after its output."""

    def __init__(self, anchor: ir.Node, opset: int, *, before: bool) -> None:
        self._anchor, self._opset, self._before = anchor, opset, before
        self._prefix = anchor.outputs[0].name

    def op(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        name: str,
        attributes: dict[str, int | Sequence[int]] | None = None,
    ) -> ir.Value:
        """Add a node; returns its output, called `<output of the anchor>/<name>`."""
        graph = self._anchor.graph
        assert isinstance(graph, ir.Graph)
        name = unique_name(graph, f"{self._prefix}/{name}")
        node = ir.node(op_type, inputs, attributes, outputs=[ir.Value(name=name)], name=name)
        if self._before:
            graph.insert_before(self._anchor, node)
        else:
            graph.insert_after(self._anchor, node)
            self._anchor = node
        return node.outputs[0]

    def reduce(self, op_type: str, value: ir.Value, name: str) -> ir.Value:
        """Over the last axis, which stays with size 1."""
        if self._opset < _AXES_OPERAND_FROM[op_type]:
            return self.op(op_type, [value], name, {"axes": [-1], "keepdims": 1})
        graph = self._anchor.graph
        assert isinstance(graph, ir.Graph)
        axes = add_constant(graph, f"{self._prefix}/{name}_axes", np.array([-1]))
        return self.op(op_type, [value, axes], name, {"keepdims": 1})


def like(value: ir.Value, other: ir.Value | None) -> None:
    """Take over shape and type."""
    if other is not None:
        value.shape, value.type = other.shape, other.type
