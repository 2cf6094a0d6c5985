"""Reductions whose axes come back."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from lwqc.graph.operands import only_reader, reduced_axes
from lwqc.graph.sampled import Sampled, Sizes
from lwqc.model.edit import replace_node
from lwqc.passes.base import Pass
from lwqc.passes.context import Context


class KeptAxes(Pass):
    """Let a reduction keep its axes rather than give them back.

    Matches: ReduceMean, ReduceSum and the like without `keepdims`, read by one Reshape or Unsqueeze
        that gives the axes back with size one, as JAX writes means.
    Rewrites to: the reduction with `keepdims`. Exact.
    Refuses: shapes that are not known.
    """

    needs_sizes = True
    keeps_sizes = True

    def rewrite(self, model: ir.Model, ctx: Context) -> int:
        """Rewrite every match of the main graph."""
        found = [(n, r) for n in model.graph if (r := _giving_back(n, ctx.shapes)) is not None]
        for node, reader in found:
            node.attributes["keepdims"] = ir.AttrInt64("keepdims", 1)
            replace_node(reader, node.outputs[0])
        return len(found)


def _giving_back(node: ir.Node, shapes: Mapping[str, Sampled]) -> ir.Node | None:
    """The node that gives the axes of a reduction back."""
    if node.domain or not node.op_type.startswith("Reduce") or node.inputs[0] is None:
        return None
    keeps = node.attributes.get("keepdims")
    reader, axes = only_reader(node.outputs[0]), reduced_axes(node)
    if keeps is None or keeps.as_int() or not axes or reader is None or reader.domain:
        return None
    before = shapes.get(node.inputs[0].name or "")
    after = shapes.get(reader.outputs[0].name or "")
    if reader.op_type not in ("Reshape", "Unsqueeze") or before is None or after is None:
        return None
    if reader.inputs[0] is not node.outputs[0]:
        return None
    ones = {axis % before.rank for axis in axes}
    pairs = ((before.first, after.first), (before.second, after.second))
    return reader if all(_kept(b, ones) == a for b, a in pairs) else None


def _kept(sizes: Sizes, ones: set[int]) -> Sizes:
    return tuple(1 if axis in ones else size for axis, size in enumerate(sizes))
