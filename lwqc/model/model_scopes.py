"""Names in a model file: each is made once, and made before it is read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx

from lwqc.errors import InputError


def check_scopes(proto: onnx.ModelProto) -> None:
    """Check the names of every graph and function; nodes are sorted already.

    Raises InputError for names that are made twice, read but never made, or outputs that nothing
    makes. A body may read what the graphs around it have made so far, and may hide their names.
    """
    _check_graph(proto.graph, frozenset(), "graph")
    for function in proto.functions:
        where = f"function {function.name}"
        given = [*function.input]
        made = _check_nodes(function.node, given, frozenset(), where)
        _check_outputs(function.output, made, where)


def _check_graph(graph: onnx.GraphProto, outside: frozenset[str], kind: str) -> None:
    where = f"{kind} {graph.name}"
    inputs = [v.name for v in graph.input]
    stored = [t.name for t in graph.initializer]
    for names in (inputs, stored):
        _check_distinct(names, where)
    given = [*inputs, *(name for name in stored if name not in set(inputs))]
    made = _check_nodes(graph.node, given, outside, where)
    _check_outputs([v.name for v in graph.output], made, where)


def _check_nodes(
    nodes: Iterable[onnx.NodeProto], given: list[str], outside: frozenset[str], where: str
) -> set[str]:
    """All names that the graph makes or is given."""
    _check_distinct(given, where)
    known = set(given)
    for node in nodes:
        here = f"{where}: {node.op_type} {node.name}".rstrip()
        for name in node.input:
            if name and name not in known and name not in outside:
                raise InputError(f"{here}: reads {name}, which nothing makes before it")
        for attribute in node.attribute:
            for body in bodies(attribute):
                _check_graph(body, outside | known, f"{here}: body")
        made = [name for name in node.output if name]
        if not made:
            raise InputError(f"{here}: has no output")
        for name in made:
            if name in known:
                raise InputError(f"{here}: makes {name}, which is there already")
            known.add(name)
    return known


def bodies(attribute: onnx.AttributeProto) -> Iterator[onnx.GraphProto]:
    """Graphs inside of an attribute."""
    if attribute.HasField("g"):
        yield attribute.g
    yield from attribute.graphs


def _check_distinct(names: list[str], where: str) -> None:
    if "" in names:
        raise InputError(f"{where}: an input or a stored tensor has no name")
    if len(names) != len(set(names)):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise InputError(f"{where}: {twice} is given twice")


def _check_outputs(names: Iterable[str], made: set[str], where: str) -> None:
    seen: set[str] = set()
    listed = list(names)
    if not listed:
        raise InputError(f"{where}: has no outputs")
    for name in listed:
        if name not in made:
            raise InputError(f"{where}: output {name or '(unnamed)'}: nothing makes it")
        if name in seen:
            raise InputError(f"{where}: output {name} is listed twice")
        seen.add(name)
