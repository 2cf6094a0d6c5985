"""Stored numbers that nodes make larger ones of, once, when a model is loaded."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

import onnx_ir as ir

from lwqc.model.weights import stored_tensor

_BODIES = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
_LARGE = 1 << 14  # numbers
_FEW = 1 / 16  # of the numbers that are made of them


def enlarging(graph: ir.Graph) -> Iterator[ir.Node]:
    """Nodes of the graph that make more numbers than are stored of stored ones alone.

    A filter that is computed of its positions costs nothing at run time, and its errors are not
    those of rounding its own numbers. A weight as large as what it is made of is stored small.
    """
    for node, sources in _made_of_stored(graph).items():
        if _made(node) > sum(sources.values()):
            yield node


def at_run_time(graph: ir.Graph) -> Counter[str]:
    """Operators of the nodes that read more than stored numbers: those left when it is loaded."""
    made = _made_of_stored(graph)
    return Counter(f"{node.domain}.{node.op_type}" for node in graph if node not in made)


def computed_filters(graph: ir.Graph) -> frozenset[ir.Node]:
    """Nodes that make large filters of convolutions of few stored numbers."""
    made = _made_of_stored(graph)
    found: set[ir.Node] = set()
    for node in graph:
        weight = node.inputs[1] if (node.domain, node.op_type) == ("", "Conv") else None
        root = weight.producer() if weight is not None else None
        if root is None or root not in made or _made(root) < _LARGE:
            continue
        if sum(made[root].values()) <= _FEW * _made(root):
            todo = [root]
            while todo:
                one = todo.pop()
                found.add(one)
                behind = (value.producer() for value in one.inputs if value is not None)
                todo.extend(p for p in behind if p is not None and p not in found)
    return frozenset(found)


def _made_of_stored(graph: ir.Graph) -> dict[ir.Node, dict[ir.Value, int]]:
    """Nodes that read nothing but stored numbers, at last: how many of which value."""
    found: dict[ir.Node, dict[ir.Value, int]] = {}
    for node in graph:
        sources: dict[ir.Value, int] = {}
        for value in node.inputs:
            tensor = stored_tensor(value)
            if value is not None and tensor is not None:
                sources[value] = tensor.size
            elif value is not None:
                producer = value.producer()
                if producer is None or producer not in found:
                    break
                sources |= found[producer]
        else:
            bodies = any(a.type in _BODIES for a in node.attributes.values())
            if sources and not bodies:
                found[node] = sources
    return found


def _made(node: ir.Node) -> int:
    """How many numbers it makes; 0 where that is not known."""
    shapes = [v.shape for v in node.outputs]
    return sum(math.prod(s.numpy()) for s in shapes if s is not None and s.is_static())
