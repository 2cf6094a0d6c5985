"""Which nodes of a graph depend on which, subgraphs counted with the node that holds them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from heapq import heappop, heappush

import onnx_ir as ir

from lwqc.graph.captures import captures

SHAPE_ONLY = frozenset({"Shape", "Size"})  # read how large a tensor is, not what is in it


class Dataflow:
    """Positions and captured values of the main graph, looked up once; edits make it stale."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self._order = list(graph)
        self.position = {node: i for i, node in enumerate(self._order)}
        self._captured: dict[ir.Node, list[ir.Value]] = {}
        self._captors: dict[ir.Value, list[ir.Node]] = {}
        for node, values in captures(graph):
            self._captured.setdefault(node, []).extend(values)
            for value in values:
                self._captors.setdefault(value, []).append(node)

    def reads(self, node: ir.Node) -> Iterator[ir.Value]:
        """Inputs of a node and what its subgraphs capture."""
        yield from (v for v in node.inputs if v is not None)
        yield from self._captured.get(node, ())

    def users(self, value: ir.Value) -> Iterator[ir.Node]:
        """Nodes of the main graph that read a value, directly or in a subgraph."""
        yield from (user for user in value.consumers() if user in self.position)
        yield from self._captors.get(value, ())

    def ancestors(self, value: ir.Value, after: ir.Value | None = None) -> list[ir.Node]:
        """Nodes that `value` depends on and that come after the producer of `after`, in order."""
        producer = after.producer() if after is not None else None
        floor = self.position.get(producer, -1) if producer is not None else -1
        seen: set[ir.Node] = set()
        todo = [value.producer()]
        while todo:
            node = todo.pop()
            if node is None or node in seen or self.position.get(node, -1) <= floor:
                continue
            seen.add(node)
            todo.extend(v.producer() for v in self.reads(node))
        return sorted(seen, key=self.position.__getitem__)

    def reached(
        self, start: ir.Value, nodes: Iterable[ir.Node], barriers: Collection[str] = ()
    ) -> dict[ir.Node, None]:
        """Those of `nodes` (in order) that depend on `start` without a barrier on the way."""
        values = {start}
        found: dict[ir.Node, None] = {}
        for node in nodes:
            if node.op_type not in barriers and any(v in values for v in self.reads(node)):
                values.update(node.outputs)
                found[node] = None
        return found

    def dying(self, value: ir.Value, user: ir.Node, own: Collection[ir.Node]) -> list[ir.Node]:
        """Nodes that nothing reads any more once `user` no longer reads `value`, in order.

        own: nodes that are not kept alive by being graph outputs (a branch's key/value cache).
        """
        dead: set[ir.Node] = set()
        seen: set[ir.Node] = set()
        todo: list[int] = []  # positions, negated: a node comes after all that may read it
        self._push(value.producer(), todo, seen)
        while todo:
            node = self._order[-heappop(todo)]
            if self._unread(node, dead, value, user) and (
                node in own or not any(v.is_graph_output() for v in node.outputs)
            ):
                dead.add(node)
                for read in self.reads(node):
                    self._push(read.producer(), todo, seen)
        return sorted(dead, key=self.position.__getitem__)

    def _push(self, node: ir.Node | None, todo: list[int], seen: set[ir.Node]) -> None:
        if node is not None and node in self.position and node not in seen:
            seen.add(node)
            heappush(todo, -self.position[node])

    def _unread(
        self, node: ir.Node, dead: Collection[ir.Node], value: ir.Value, user: ir.Node
    ) -> bool:
        return all(
            reader in dead or (output is value and reader is user)
            for output in node.outputs
            for reader in self.users(output)
        )
