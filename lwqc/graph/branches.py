"""Residual branches from graph structure alone: y = x + f(x)."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from lwqc.graph.weights import trace_weight


@dataclass(frozen=True)
class Branch:
    """One residual branch.

    add: the node that joins it. stream: x. branch: f(x). output: y. nodes: those of f, in order.
    """

    add: ir.Node
    stream: ir.Value
    branch: ir.Value
    output: ir.Value
    nodes: tuple[ir.Node, ...]


def residual_branches(graph: ir.Graph) -> list[Branch]:
    """All branches of the main graph, in topological order.

    An addition of two computed tensors is a branch when one operand is an ancestor of the other.
    Projection shortcuts (neither is) and additions of constants are not.
    """
    position = {node: i for i, node in enumerate(graph)}
    found = []
    for node in position:
        if node.op_type not in {"Add", "Sum"} or node.domain != "" or len(node.inputs) != 2:
            continue
        left, right = node.inputs
        if left is None or right is None or left is right:
            continue
        if trace_weight(left) is not None or trace_weight(right) is not None:
            continue
        for stream, branch in ((left, right), (right, left)):
            nodes = _between(stream, branch, position)
            if nodes:
                found.append(Branch(node, stream, branch, node.outputs[0], nodes))
                break
    return found


def _between(
    stream: ir.Value, branch: ir.Value, position: dict[ir.Node, int]
) -> tuple[ir.Node, ...]:
    """Nodes on paths from `stream` to `branch`, in order; empty when there is no path.

    The search goes back from `branch` and never past the producer of `stream`.
    """
    producer = stream.producer()
    floor = position.get(producer, -1) if producer is not None else -1
    seen: set[ir.Node] = set()
    todo = [branch.producer()]
    while todo:
        node = todo.pop()
        if node is None or node in seen or position.get(node, -1) <= floor:
            continue
        seen.add(node)
        todo.extend(v.producer() for v in node.inputs if v is not None)
    reached: set[ir.Value] = {stream}
    nodes = []
    for node in sorted(seen, key=position.__getitem__):
        if any(v in reached for v in node.inputs):
            reached.update(node.outputs)
            nodes.append(node)
    return tuple(nodes) if branch in reached else ()
