"""Which nodes of a graph depend on which, subgraphs counted with the node that holds them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

import onnx_ir as ir

from lwqc.graph.captures import captures

SHAPE_ONLY = frozenset({"Shape", "Size"})  # read how large a tensor is, not what is in it


class Dataflow:
    """Positions and captured values of the main graph, looked up once; edits make it stale."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.position = {node: i for i, node in enumerate(graph)}
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

    def ancestors(self, value: ir.Value, after: ir.Value) -> list[ir.Node]:
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

    def dying(self, value: ir.Value, user: ir.Node) -> list[ir.Node]:
        """Nodes that nothing reads any more once `user` no longer reads `value`, in order.

        Graph outputs that depend on `value`'s producer side do not keep nodes alive when they are
        computed on the way to it (a key/value cache).
        """
        start = value.producer()
        if start is None or start not in self.position:
            return []
        dead: set[ir.Node] = set()
        todo = [start]
        while todo:
            node = max(todo, key=self.position.__getitem__)  # its users are decided already
            todo.remove(node)
            if node in dead or not self._unread(node, dead, value, user):
                continue
            dead.add(node)
            producers = (v.producer() for v in self.reads(node))
            todo.extend(p for p in producers if p in self.position and p not in todo)
        return sorted(dead, key=self.position.__getitem__)

    def _unread(
        self, node: ir.Node, dead: Collection[ir.Node], value: ir.Value, user: ir.Node
    ) -> bool:
        return all(
            reader in dead or (output is value and reader is user)
            for output in node.outputs
            for reader in self.users(output)
        )
