"""Writes rotary position embedding as one operator."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import TopologicalSortPass

from lwqc.graph.attention_core import permutation
from lwqc.graph.rotary import Rotary, find_rotary
from lwqc.graph.sampled import Sampled
from lwqc.graph.shapes import declared_shapes
from lwqc.model.edit import Rewrite, add_constant, insert_before, replace_node
from lwqc.model.names import unique_name
from lwqc.model.unused import RemoveUnused
from lwqc.model.weights import stored_tensor

OPSET = 23  # the first with RotaryEmbedding
_HEADS_FIRST = (0, 2, 1, 3)


class FuseRotary(Rewrite):
    """Write x * cos + rotated(x) * sin as RotaryEmbedding.

    Matches: rotations of the two halves of the last axis, see `lwqc.graph.rotary`, whose tables
        are computed from concatenated, or stored, equal halves.
    Rewrites to: RotaryEmbedding, before heads are split and brought to the front where they are,
        with tables [batch, tokens, size / 2] that layers share. Exact.
    Refuses: opsets without it, other types than float32, tables of another shape, rotations of
        a part of the size, of neighbouring elements, or of what was just rotated.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fuse every rotation of the main graph."""
        if model.opset_imports.get("", 1) < OPSET:
            return ir.passes.PassResult(model, False)
        shapes, _ = declared_shapes(model)
        found = find_rotary(model.graph, shapes)
        turned = {rotary.out.outputs[0] for rotary in found}
        found = [rotary for rotary in found if rotary.x not in turned]
        tables = _Tables(model.graph, shapes)
        for rotary in found:
            _fuse(model.graph, rotary, shapes, tables)
        RemoveUnused()(model)
        if found:
            TopologicalSortPass()(model)
        return ir.passes.PassResult(model, bool(found))


class _Tables:
    """Half tables made so far, by what they are half of and the batch they are for."""

    def __init__(self, graph: ir.Graph, shapes: Mapping[str, Sampled]) -> None:
        self._graph = graph
        self._shapes = shapes
        self._made: dict[Hashable, ir.Value] = {}

    def half(self, table: ir.Value, x: ir.Value, batched: ir.Value, anchor: ir.Node) -> ir.Value:
        """The first half of a table for x as [batch, tokens, size / 2].

        batched: where the batch can be read, on axis 0.
        """
        own, sizes = self._shapes[table.name or ""], self._shapes[x.name or ""]
        key = (table, sizes.first[0], sizes.second[0])
        if key in self._made:
            return self._made[key]
        half = sizes.first[3] // 2
        value = self._node(
            anchor, "Slice", [table, *self._ints((0,), (half,), (own.rank - 1,))], table
        )
        if own.rank == 4:
            value = self._node(anchor, "Squeeze", [value, *self._ints((1,))], table)
        full = own.rank == 4 and (own.first[0], own.second[0]) == (sizes.first[0], sizes.second[0])
        if not full:
            ends: dict[str, int | float] = {"start": 0, "end": 1}
            batch = self._node(anchor, "Shape", [batched], table, ends)
            shape = self._node(anchor, "Concat", [batch, *self._ints((1, 1))], table, {"axis": 0})
            value = self._node(anchor, "Expand", [value, shape], table)
        self._made[key] = value
        return value

    def _ints(self, *numbers: tuple[int, ...]) -> list[ir.Value]:
        name = "rotary/constant"
        return [add_constant(self._graph, name, np.asarray(n, np.int64)) for n in numbers]

    def _node(
        self,
        anchor: ir.Node,
        op_type: str,
        inputs: list[ir.Value],
        table: ir.Value,
        attributes: dict[str, int | float] | None = None,
    ) -> ir.Value:
        name = f"{table.name}/{op_type.lower()}"
        (value,) = insert_before(anchor, op_type, inputs, [name], attributes)
        return value


def _fuse(graph: ir.Graph, rotary: Rotary, shapes: Mapping[str, Sampled], tables: _Tables) -> None:
    anchor = rotary.out
    split = _split(rotary.x, shapes)
    batched = rotary.x if split is None else split[0]
    cos, sin = (tables.half(t, rotary.x, batched, anchor) for t in (rotary.cos, rotary.sin))
    name = f"{anchor.outputs[0].name}/rotary"
    if split is None:
        (value,) = insert_before(anchor, "RotaryEmbedding", [rotary.x, cos, sin], [name])
        replace_node(anchor, value)
        return
    whole, target, heads = split
    attributes: dict[str, int | float] = {"num_heads": heads}
    (value,) = insert_before(anchor, "RotaryEmbedding", [whole, cos, sin], [name], attributes)
    (tokens,) = insert_before(anchor, "Reshape", [value, target], [f"{name}/split"])
    front = ir.Value(name=unique_name(graph, f"{name}/front"))
    node = ir.node(
        "Transpose", [tokens], {"perm": list(_HEADS_FIRST)}, outputs=[front], name=front.name
    )
    graph.insert_before(anchor, node)
    replace_node(anchor, front)


def _split(x: ir.Value, shapes: Mapping[str, Sampled]) -> tuple[ir.Value, ir.Value, int] | None:
    """[batch, tokens, heads * size] that x is, how its heads are split, and their number."""
    transpose = x.producer()
    if permutation(x) != _HEADS_FIRST or transpose is None or transpose.inputs[0] is None:
        return None
    reshape = transpose.inputs[0].producer()
    if reshape is None or (reshape.domain, reshape.op_type) != ("", "Reshape"):
        return None
    whole, target = reshape.inputs
    before, after = (shapes.get(v.name or "") for v in (whole, transpose.inputs[0]) if v)
    if whole is None or target is None or stored_tensor(target) is None:
        return None
    if before is None or after is None or before.rank != 3:
        return None
    pairs = ((before.first, after.first), (before.second, after.second))
    if any(a != (*b[:2], b[2] * b[3]) for a, b in pairs) or not after.static(2):
        return None
    return whole, target, after.first[2]
