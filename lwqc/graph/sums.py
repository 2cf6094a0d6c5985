"""Sums written as chains of additions, flattened into their terms."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

_ADDITIONS = frozenset({"Add", "Sum"})


def sums(graph: ir.Graph) -> Iterator[ir.Node]:
    """Additions whose result is no term of another sum, in graph order."""
    for node in graph:
        if is_addition(node) and _sum_of(node.outputs[0]) is None:
            yield node


def terms(root: ir.Node) -> list[ir.Value]:
    """What a sum adds up, in order: additions that nothing else reads are taken apart."""
    found: list[ir.Value] = []
    todo = [v for v in reversed(root.inputs) if v is not None]
    while todo:
        value = todo.pop()
        inner = value.producer()
        if inner is not None and is_addition(inner) and _sum_of(value) is not None:
            todo.extend(v for v in reversed(inner.inputs) if v is not None)
        else:
            found.append(value)
    return found


def is_addition(node: ir.Node) -> bool:
    """Whether a node adds tensors elementwise."""
    return node.domain == "" and node.op_type in _ADDITIONS and None not in node.inputs


def _sum_of(value: ir.Value) -> ir.Node | None:
    """The addition that is the value's only reader."""
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output():
        return None
    reader, producer = uses[0].node, value.producer()
    same_graph = producer is not None and reader.graph is producer.graph
    return reader if is_addition(reader) and same_graph else None
