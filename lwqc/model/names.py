"""Names of values: unique in every scope that can see them, and never looked into for a meaning."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from weakref import WeakKeyDictionary

import onnx_ir as ir

# Names in use, by graph; the graphs of one model share one set, which `gather_names` starts.
_TAKEN: WeakKeyDictionary[ir.Graph, set[str]] = WeakKeyDictionary()


def bodies(node: ir.Node) -> Iterator[tuple[str, ir.Graph]]:
    """The graphs that a node holds, each with the attribute that holds it."""
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.name, attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            for i, graph in enumerate(attribute.as_graphs()):
                yield f"{attribute.name}/{i}", graph


def scopes(graph: ir.Graph | ir.Function, path: str = "") -> Iterator[tuple[str, ir.Graph]]:
    """A graph and all bodies in it, each with the path of the nodes that hold it."""
    yield path, graph.graph if isinstance(graph, ir.Function) else graph
    for i, node in enumerate(graph):
        for attribute, body in bodies(node):
            yield from scopes(body, f"{path}{_label(node, i)}/{attribute}/")


def nodes_of(graph: ir.Graph) -> Iterator[ir.Node]:
    """Every node of a graph and of the bodies in it, faster than `Graph.all_nodes`."""
    for node in graph:
        yield node
        if node.attributes:
            for _, body in bodies(node):
                yield from nodes_of(body)


def _label(node: ir.Node, position: int) -> str:
    first = next((v.name for v in node.outputs if v.name), None)
    return node.name or first or f"{node.op_type}{position}"


def own_values(graph: ir.Graph) -> Iterator[ir.Value]:
    """Values that a graph defines itself: inputs, initializers and outputs of its nodes."""
    yield from dict.fromkeys((*graph.inputs, *graph.initializers.values()))
    for node in graph:
        yield from node.outputs


def gather_names(model: ir.Model) -> set[str]:
    """Note all names of a model, so that `unique_name` avoids them in each of its graphs.

    Whatever gives names without asking `unique_name` makes another call necessary.
    """
    taken: set[str] = set()
    for _, graph in _all_scopes(model):
        taken.update(v.name or "" for v in own_values(graph))
        _TAKEN[graph] = taken
    return taken


def unique_name(graph: ir.Graph, name: str) -> str:
    """`name`, or with a number appended where a scope that can see it, or is seen, has it already.

    Knows the scopes around `graph` from `gather_names`; without that only those inside.
    """
    taken = _TAKEN.get(graph)
    if taken is None:
        taken = {v.name or "" for _, g in scopes(graph) for v in own_values(g)}
    return _claimed(taken, name)


def _claimed(taken: set[str], name: str) -> str:
    candidate, i = name, 1
    while candidate in taken or not candidate:
        candidate, i = f"{name}_{i}", i + 1
    taken.add(candidate)
    return candidate


def distinct_names(model: ir.Model, values: Iterable[ir.Value]) -> dict[ir.Value, str]:
    """A name for each of the values that no other value of the model has.

    That is its own wherever it is the only one, and in the main graph; the others get the path of
    the nodes around them in front. The same for a clone of the model.
    """
    everything = [(path, v) for path, graph in _all_scopes(model) for v in own_values(graph)]
    count = Counter(v.name or "" for _, v in everything)
    wanted, taken = set(values), set(count)
    found: dict[ir.Value, str] = {}
    for path, value in everything:
        name = value.name or ""
        if value in wanted:
            own = count[name] == 1 or not path
            found[value] = name if own and name else _claimed(taken, f"{path}{name}")
    return found


def _all_scopes(model: ir.Model) -> Iterator[tuple[str, ir.Graph]]:
    yield from scopes(model.graph)
    for function in model.functions.values():
        yield from scopes(function, f"{function.name}/")
