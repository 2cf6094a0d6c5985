"""Transposes of the last two axes that are written on a tensor with the other axes flattened."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from lwqc.graph.attention_core import permutation
from lwqc.graph.sampled import Sampled
from lwqc.model.edit import replace_node
from lwqc.model.names import unique_name
from lwqc.passes.base import Pass
from lwqc.passes.context import Context


class FlatTranspose(Pass):
    """Drop reshapes around a Transpose of the last two axes.

    Matches: Reshape [..., a, b] to [rest, a, b], Transpose to [rest, b, a], Reshape to
        [..., b, a], as torch's exporter transposes keys.
    Rewrites to: one Transpose. Exact.
    Refuses: shapes that are not known, other axes.
    """

    needs_sizes = True
    keeps_sizes = True

    def rewrite(self, model: ir.Model, ctx: Context) -> int:
        """Rewrite every match of the main graph."""
        shapes = ctx.shapes
        found = [(n, s) for n in model.graph if (s := _matched(n, shapes)) is not None]
        for node, source in found:
            value = ir.Value(name=unique_name(model.graph, f"{node.outputs[0].name}/transposed"))
            rank = shapes[source.name or ""].rank
            perm = [*range(rank - 2), rank - 1, rank - 2]
            new = ir.node("Transpose", [source], {"perm": perm}, outputs=[value], name=value.name)
            model.graph.insert_before(node, new)
            replace_node(node, value)
        return len(found)


def _matched(last: ir.Node, shapes: Mapping[str, Sampled]) -> ir.Value | None:
    """What a chain that ends with this Reshape transposes."""
    turned = _reshaped(last)
    if turned is None or permutation(turned) != (0, 2, 1):
        return None
    transpose = turned.producer()
    first = transpose.inputs[0].producer() if transpose and transpose.inputs[0] else None
    source = _reshaped(first) if first is not None else None
    if first is None or source is None:
        return None
    sizes = [shapes.get(v.name or "") for v in (source, first.outputs[0], last.outputs[0])]
    if any(s is None for s in sizes):
        return None
    a, b, c = (s for s in sizes if s is not None)
    pairs = ((a.first, b.first, c.first), (a.second, b.second, c.second))
    return source if all(_is_turned(*p) for p in pairs) else None


def _is_turned(a: tuple[int, ...], b: tuple[int, ...], c: tuple[int, ...]) -> bool:
    return len(a) > 2 and a[-2:] == b[-2:] and c == (*a[:-2], a[-1], a[-2])


def _reshaped(node: ir.Node) -> ir.Value | None:
    return node.inputs[0] if (node.domain, node.op_type) == ("", "Reshape") else None
