"""Nodes that the runtime runs once, while it loads a model: those that read constants alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import onnx_ir as ir

_ANEW = {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli",
         "Multinomial"}  # fmt: skip


def at_load(graph: ir.Graph) -> Mapping[ir.Node, Collection[ir.Node]]:
    """Nodes that run each time, in order, with those whose constant results they read.

    graph: sorted. Its own outputs are of nodes that run each time.
    """
    made: dict[ir.Node, dict[ir.Node, None]] = {}  # what a constant takes
    found: dict[ir.Node, Collection[ir.Node]] = {}
    for node in graph:
        above = [value.producer() for value in node.inputs if value is not None]
        read: dict[ir.Node, None] = {}
        for one in above:
            if one in made:
                read |= made[one]
        if _is_constant(node, made):
            made[node] = {**read, node: None}
        else:
            found[node] = tuple(read)
    return found


def _is_constant(node: ir.Node, made: Collection[ir.Node]) -> bool:
    if node.op_type in _ANEW or any(value.is_graph_output() for value in node.outputs):
        return False
    if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
           for a in node.attributes.values()):  # fmt: skip
        return False
    return all(
        value is None or value.is_initializer() or value.producer() in made for value in node.inputs
    )
