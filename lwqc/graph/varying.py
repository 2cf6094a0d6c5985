"""Values of a graph that differ from run to run, and who reads them."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from lwqc.graph.captures import captures

_RANDOM = ("Random", "Bernoulli", "Multinomial", "Dropout")  # a second run gives other values


def operands(graph: ir.Graph) -> list[list[ir.Value]]:
    """What each node reads, with what its bodies read of the graph around them."""
    captured: dict[ir.Node, list[ir.Value]] = {}
    for node, values in captures(graph):
        captured.setdefault(node, []).extend(values)
    return [[v for v in (*node.inputs, *captured.get(node, ())) if v is not None] for node in graph]


def varying(graph: ir.Graph, read: Sequence[Sequence[ir.Value]]) -> dict[str, int]:
    """Values that depend on inputs or on chance -> position of their node; of an input -1.

    The others depend on weights alone. graph: sorted. read: its `operands`.
    """
    made = {v.name or "": -1 for v in graph.inputs}
    for i, (node, values) in enumerate(zip(graph, read, strict=True)):
        if node.op_type.startswith(_RANDOM) or any((v.name or "") in made for v in values):
            made |= {v.name or "": i for v in node.outputs}
    return made
