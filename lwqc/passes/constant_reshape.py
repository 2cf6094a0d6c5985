"""Shape arithmetic that sizes already known make superfluous."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from lwqc.graph.sampled import Sampled
from lwqc.model.edit import add_constant
from lwqc.model.weights import stored_tensor
from lwqc.passes.base import Pass
from lwqc.passes.context import Context

_COPY, _REST = 0, -1  # what a Reshape's target says of an axis whose size is not fixed
_TARGET_INPUT = 5  # opset from which the target is an input


class ConstantReshape(Pass):
    """Let Reshape do without shape arithmetic.

    Matches: Reshape whose target is computed; Reshape and Expand that change nothing.
    Rewrites to: Reshape with a stored target, in which sizes are fixed, copied from the same axis
        of the input, or, once, what is left; or to the input. Exact. What computed the target goes
        when nothing else reads it.
    Refuses: sizes that are not known, targets with two sizes that neither are fixed nor stay on
        their axis.
    """

    needs_sizes = True
    keeps_sizes = True

    def rewrite(self, model: ir.Model, ctx: Context) -> int:
        """Rewrite every match of the main graph."""
        if model.opset_imports.get("", 1) < _TARGET_INPUT:
            return 0
        return sum(_rewrite(model.graph, node, ctx.shapes) for node in list(model.graph))


def _rewrite(graph: ir.Graph, node: ir.Node, shapes: Mapping[str, Sampled]) -> bool:
    if node.domain != "" or node.op_type not in ("Reshape", "Expand"):
        return False
    data, result = node.inputs[0], node.outputs[0]
    before = shapes.get(data.name or "") if data is not None else None
    after = shapes.get(result.name or "")
    if before is None or after is None or data is None:
        return False
    if before == after and not result.is_graph_output():
        result.replace_all_uses_with(data)
        graph.remove(node, safe=True)
        return True
    if node.op_type == "Expand" or stored_tensor(node.inputs[1]) is not None:
        return False
    target = [_entry(axis, before, after) for axis in range(after.rank)]
    if target.count(_REST) > 1:
        return False
    name = f"{result.name}/shape"
    node.replace_input_with(1, add_constant(graph, name, np.asarray(target, np.int64)))
    node.attributes.pop("allowzero", None)
    return True


def _entry(axis: int, before: Sampled, after: Sampled) -> int:
    """What a Reshape's target says of an axis."""
    if after.static(axis) and after.first[axis] > 0:
        return after.first[axis]
    kept = axis < before.rank and (before.first[axis], before.second[axis]) == (
        after.first[axis],
        after.second[axis],
    )
    return _COPY if kept else _REST
