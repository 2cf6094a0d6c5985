"""Caches of keys and values: what a decoder takes of earlier tokens, and gives to later ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from lwqc.graph.dataflow import SHAPE_ONLY
from lwqc.graph.operands import axis_of
from lwqc.model.refusal import Refusal

GROUPED = "GroupQueryAttention"
_TOKENS = 2  # the axis of caches [batch, heads, tokens, size]


@dataclass(frozen=True, eq=False)
class Cache:
    """Keys or values [batch, heads, tokens, size] of one attention.

    node: puts the new tokens behind the past, an Attention, a GroupQueryAttention or a Concat.
    slot: which of its inputs is the past. past: that input of the graph. present: the output of
    the graph that the next run takes as its past. heads, size: numbers.
    """

    node: ir.Node
    slot: int
    past: ir.Value
    present: ir.Value
    heads: int
    size: int


def find_caches(graph: ir.Graph) -> tuple[list[Cache], list[Refusal]]:
    """All caches of a decoder that are float32, and why others are none.

    A cache is an input that only an attention or a Concat over the tokens reads, beside nodes that
    look at its shape, and what comes of it there is an output that nothing else keeps. Keys and
    values of one attention are both caches, or neither is.
    """
    found, left = [], []
    for node in graph:
        members = [_cache(node, slot, present) for slot, present in _places(node, graph)]
        refused = [m for m in members if isinstance(m, Refusal)]
        left += refused
        found += [m for m in members if isinstance(m, Cache) and not refused]
    return found, left


def _places(node: ir.Node, graph: ir.Graph) -> Iterator[tuple[int, ir.Value]]:
    """Where a node takes an input of the graph as its past, and what it makes of it."""
    slots = {("", "Attention"): 4, ("com.microsoft", GROUPED): 3}
    first = slots.get((node.domain, node.op_type))
    if first is not None:
        pairs = [(first + i, 1 + i) for i in range(2)]
        for slot, out in pairs:
            both = slot < len(node.inputs) and out < len(node.outputs)
            if both and _is_fed(node.inputs[slot], graph):
                yield slot, node.outputs[out]
    elif (node.domain, node.op_type) == ("", "Concat") and len(node.inputs) == 2:
        value, made = node.inputs[0], node.outputs[0]
        if _is_fed(value, graph) and made.is_graph_output() and axis_of(node, 4) == _TOKENS:
            yield 0, made


def _is_fed(value: ir.Value | None, graph: ir.Graph | ir.Function | None) -> bool:
    return value is not None and value.is_graph_input() and value.graph is graph


def _cache(node: ir.Node, slot: int, present: ir.Value) -> Cache | Refusal:
    """The cache, or why it is none that can be stored in another type."""
    past = node.inputs[slot]
    assert past is not None
    reason = _reason(node, past, present)
    if reason:
        return Refusal(past.name or "", reason)
    assert past.shape is not None
    heads, size = past.shape[1], past.shape[3]
    assert isinstance(heads, int)
    assert isinstance(size, int)
    return Cache(node, slot, past, present, heads, size)


def _reason(node: ir.Node, past: ir.Value, present: ir.Value) -> str:
    if past.dtype != ir.DataType.FLOAT:
        return f"it is {past.dtype.name.lower() if past.dtype else 'of no known type'}, not float32"
    if past.shape is None or past.shape.rank() != 4:
        return "it is not [batch, heads, tokens, size]"
    if not isinstance(past.shape[1], int) or not isinstance(past.shape[3], int):
        return "how many heads it has, and of which size, is not fixed"
    if not present.is_graph_output():
        return "what comes of it is no output"
    readers = (use.node for use in past.uses() if use.node is not node)
    if node.op_type == GROUPED and not all(_is_fed(v, past.graph) for v in node.inputs[3:5]):
        return "its attention takes the other of keys and values from somewhere else"
    if past.is_graph_output() or any(reader.op_type not in SHAPE_ONLY for reader in readers):
        return "something else reads it too"
    if sum(1 for value in node.inputs if value is past) > 1:
        return "it is used twice at one place"
    read = any(use.node.op_type not in SHAPE_ONLY for use in present.uses())
    if node.op_type != "Concat" and read:
        return "something reads what comes of it"
    return ""
