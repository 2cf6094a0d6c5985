"""Residual branches from graph structure alone: y = x + f(x)."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import onnx_ir as ir

from lwqc.graph.captures import captures
from lwqc.graph.weights import trace_weight

_JOINS = frozenset({"Add", "Sum"})
_SHAPE_ONLY = frozenset({"Shape", "Size"})  # read how large a tensor is, not what is in it
_NOT_LEARNED = frozenset({ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL})


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

    An addition of two computed tensors is a branch when one operand, the stream, is an ancestor of
    the other, f reads a learned tensor, and nothing else reads what f computes on the way (its
    values may be graph outputs: a key/value cache). Projection shortcuts (neither operand is an
    ancestor), additions of constants, of masks, and polynomials such as x + c * x^3 are none.
    """
    structure = _Structure(graph)
    found = (structure.branch_at(node) for node in graph)
    return [branch for branch in found if branch is not None]


class _Structure:
    """Positions and captured values of a graph, looked up once."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.position = {node: i for i, node in enumerate(graph)}
        self.captured: dict[ir.Node, list[ir.Value]] = {}
        self.captors: dict[ir.Value, list[ir.Node]] = {}
        for node, values in captures(graph):
            self.captured.setdefault(node, []).extend(values)
            for value in values:
                self.captors.setdefault(value, []).append(node)

    def branch_at(self, node: ir.Node) -> Branch | None:
        if node.domain != "" or node.op_type not in _JOINS or len(node.inputs) != 2:
            return None
        left, right = node.inputs
        if left is None or right is None or left is right:
            return None
        if trace_weight(left) is not None or trace_weight(right) is not None:
            return None
        for stream, branch in ((left, right), (right, left)):
            nodes = self._function(stream, branch, node)
            if nodes:
                return Branch(node, stream, branch, node.outputs[0], nodes)
        return None

    def _function(
        self, stream: ir.Value, branch: ir.Value, add: ir.Node
    ) -> tuple[ir.Node, ...] | None:
        """Nodes from `stream` to `branch` if they are a function that can go as a unit."""
        ancestors = self._ancestors(branch, after=stream)
        carriers = self._reached(stream, ancestors, _SHAPE_ONLY)
        if branch.producer() not in carriers or self._leaks(carriers, add):
            return None
        nodes = self._reached(stream, ancestors, frozenset())
        return tuple(nodes) if any(map(_is_learned, nodes)) else None

    def _ancestors(self, value: ir.Value, after: ir.Value) -> list[ir.Node]:
        """Nodes that `value` depends on and that come after the producer of `after`, in order."""
        producer = after.producer()
        floor = self.position.get(producer, -1) if producer is not None else -1
        seen: set[ir.Node] = set()
        todo = [value.producer()]
        while todo:
            node = todo.pop()
            if node is None or node in seen or self.position.get(node, -1) <= floor:
                continue
            seen.add(node)
            todo.extend(v.producer() for v in self._reads(node))
        return sorted(seen, key=self.position.__getitem__)

    def _reached(
        self, stream: ir.Value, nodes: list[ir.Node], barriers: Collection[str]
    ) -> dict[ir.Node, None]:
        """Those of `nodes` that depend on `stream` without a barrier on the way, in order."""
        values = {stream}
        reached: dict[ir.Node, None] = {}
        for node in nodes:
            if node.op_type not in barriers and any(v in values for v in self._reads(node)):
                values.update(node.outputs)
                reached[node] = None
        return reached

    def _leaks(self, carriers: Collection[ir.Node], add: ir.Node) -> bool:
        """Whether a node other than `add` reads a value of f, apart from its shape."""
        return any(
            user is not add and user not in carriers and user.op_type not in _SHAPE_ONLY
            for node in carriers
            for value in node.outputs
            for user in self._users(value)
        )

    def _reads(self, node: ir.Node) -> Iterator[ir.Value]:
        """Inputs of a node and what its subgraphs capture."""
        yield from (v for v in node.inputs if v is not None)
        yield from self.captured.get(node, ())

    def _users(self, value: ir.Value) -> Iterator[ir.Node]:
        """Nodes of the main graph that read a value, directly or in a subgraph."""
        yield from (user for user in value.consumers() if user in self.position)
        yield from self.captors.get(value, ())


def _is_learned(node: ir.Node) -> bool:
    """Whether a node reads a stored tensor that is neither a scalar nor indices or sizes."""
    weights = (trace_weight(v) for v in node.inputs if v is not None)
    return any(
        w is not None and w.tensor.size > 1 and w.tensor.dtype not in _NOT_LEARNED for w in weights
    ) or any(g.num_nodes() for g in _subgraphs(node))


def _subgraphs(node: ir.Node) -> Iterator[ir.Graph]:
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()
