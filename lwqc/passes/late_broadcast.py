"""Values that are broadcast before anything needs their full size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx_ir as ir

from lwqc.graph.attention_core import sizes_of
from lwqc.graph.certainties import always
from lwqc.graph.rules.elementwise import RULES, broadcast, one_tensor
from lwqc.graph.sampled import Sampled
from lwqc.passes.base import Pass
from lwqc.passes.context import Context

_Pair = tuple[tuple[int, ...], tuple[int, ...]]


class LateBroadcast(Pass):
    """Leave broadcasting to the operator that has an operand of the full size.

    Matches: Expand; And with what is always true, Or with what is always false. All that is
        computed from the result, element by element, must end where another operand has the size
        of the result, as an attention mask ends where it is added to the scores.
    Rewrites to: the operand itself. Exact; a mask [batch, 1, 1, keys] is no longer computed for
        every query.
    Refuses: results that are read in another way, graph outputs, sizes that are not known.
    """

    needs_sizes = True
    keeps_sizes = True

    def rewrite(self, model: ir.Model, ctx: Context) -> int:
        """Rewrite until nothing matches."""
        changes = 0
        while found := _rewrite_all(model, dict(ctx.shapes)):
            changes += found
            ctx.changed()
        return changes


def _rewrite_all(model: ir.Model, shapes: dict[str, Sampled]) -> int:
    """Rewrite where sizes are known; those of what gets smaller are not any more."""
    changes = 0
    for node in list(model.graph):
        narrow = _narrow(node)
        shrinking = _shrinking(node.outputs[0], shapes) if narrow is not None else None
        if narrow is not None and shrinking is not None:
            node.outputs[0].replace_all_uses_with(narrow)
            model.graph.remove(node, safe=True)
            for value in shrinking:
                value.shape = None
                shapes.pop(value.name or "", None)
            changes += 1
    return changes


def _narrow(node: ir.Node) -> ir.Value | None:
    """What a node only broadcasts."""
    if node.domain != "":
        return None
    if node.op_type == "Expand":
        return node.inputs[0]
    neutral = {"And": True, "Or": False}.get(node.op_type)
    if neutral is None:
        return None
    a, b = node.inputs
    return next((v for v, other in ((a, b), (b, a)) if always(other, neutral)), None)


def _shrinking(value: ir.Value, shapes: Mapping[str, Sampled]) -> list[ir.Value] | None:
    """What gets smaller if a value is not broadcast; None if that cannot be."""
    found = [value]
    while True:
        new: list[ir.Value] = []
        for each in found:
            if each.is_graph_output() or not each.uses():
                return None
            for node in each.consumers():
                out = shapes.get(node.outputs[0].name or "")
                if out is None or not _is_elementwise(node):
                    return None
                result = node.outputs[0]
                if not _is_covered(node, found, out, shapes) and result not in found + new:
                    new.append(result)
        if not new:
            return found
        found += new


def _is_elementwise(node: ir.Node) -> bool:
    # The slope of PRelu must not be larger than its data.
    rule = RULES.get((node.domain, node.op_type))
    return node.domain == "" and rule in (one_tensor, broadcast) and node.op_type != "PRelu"


def _is_covered(
    node: ir.Node, shrinking: list[ir.Value], out: Sampled, shapes: Mapping[str, Sampled]
) -> bool:
    """Whether the other operands alone give the node's result its size."""
    others = [v for v in node.inputs if v is not None and v not in shrinking]
    sizes = list(_known(others, shapes))
    if len(sizes) < len(others) or not sizes:
        return False
    joined = [tuple(np.broadcast_shapes(*each)) for each in zip(*sizes, strict=True)]
    return joined == [out.first, out.second]


def _known(values: list[ir.Value], shapes: Mapping[str, Sampled]) -> Iterator[_Pair]:
    for value in values:
        if (found := sizes_of(value, shapes)) is not None:
            yield found.first, found.second
