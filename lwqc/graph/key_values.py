"""Keys and values of an attention before heads were repeated and a cache was put in front."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from lwqc.graph.dataflow import SHAPE_ONLY
from lwqc.graph.operands import axis_of, made_by, only_reader
from lwqc.graph.sampled import Sampled


@dataclass(frozen=True, eq=False)
class Stem:
    """What keys or values [batch, heads, tokens, size] are made of.

    whole: the same with `heads` heads, each of them maybe fewer than queries have. past, new: what
    `joined` puts one after the other over the tokens to make `whole`; None where it does not, or
    something else than this attention and the graph's outputs reads its elements.
    """

    whole: ir.Value
    heads: int
    past: ir.Value | None = None
    new: ir.Value | None = None
    joined: ir.Node | None = None


def stem(value: ir.Value, shapes: Mapping[str, Sampled]) -> Stem:
    """What `value`, which one node reads, is made of."""
    whole = _unrepeated(value, shapes)
    heads = shapes[whole.name or ""].first[1]
    joined = made_by(whole, "Concat")
    if joined is None or len(joined.inputs) != 2 or axis_of(joined, 4) != 2:
        return Stem(whole, heads)
    past, new = joined.inputs
    sizes = [shapes.get(v.name or "") for v in (past, new) if v is not None]
    if past is None or new is None or any(s is None or s.rank != 4 for s in sizes):
        return Stem(whole, heads)
    if sum(use.node.op_type not in SHAPE_ONLY for use in whole.uses()) != 1:
        return Stem(whole, heads)
    return Stem(whole, heads, past, new, joined)


def _unrepeated(value: ir.Value, shapes: Mapping[str, Sampled]) -> ir.Value:
    """[batch, kv heads, tokens, size] whose heads are each repeated one after the other."""
    node = made_by(value, "Reshape")
    expanded = made_by(node.inputs[0], "Expand") if node is not None else None
    apart = made_by(expanded.inputs[0], "Unsqueeze", "Reshape") if expanded is not None else None
    source = apart.inputs[0] if apart is not None else None
    if node is None or expanded is None or apart is None or source is None:
        return value
    if (
        only_reader(expanded.outputs[0]) is not node
        or only_reader(apart.outputs[0]) is not expanded
    ):
        return value
    chain = (source, apart.outputs[0], expanded.outputs[0], value)
    known = [shapes.get(v.name or "") for v in chain]
    if any(s is None for s in known):
        return value
    for at in ("first", "second"):
        small, single, many, full = (getattr(s, at) for s in known)
        if len(small) != 4 or single != (*small[:2], 1, *small[2:]):
            return value
        repeats = many[2] if len(many) == 5 else 0
        if many != (*small[:2], repeats, *small[2:]):
            return value
        if full != (small[0], small[1] * repeats, *small[2:]):
            return value
    return source
