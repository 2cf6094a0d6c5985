"""Choices that are made before the model runs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from lwqc.graph.sampled import Sampled
from lwqc.model.tensor_bytes import read_array
from lwqc.model.weights import stored_tensor
from lwqc.passes.base import Pass
from lwqc.passes.context import Context


class DecidedWhere(Pass):
    """Drop Where whose condition is the same everywhere.

    Matches: Where with a stored condition that is all true or all false, as JAX writes variances.
    Rewrites to: what is chosen. Exact.
    Refuses: results of another shape than what is chosen, shapes that are not known.
    """

    needs_sizes = True
    keeps_sizes = True

    def rewrite(self, model: ir.Model, ctx: Context) -> int:
        """Rewrite every match of the main graph."""
        found = [(n, i) for n in model.graph if (i := _chosen(n, ctx.shapes)) is not None]
        for node, index in found:
            value = node.inputs[index]  # now, as it may have been another such result
            assert value is not None
            node.outputs[0].replace_all_uses_with(value)
            model.graph.remove(node, safe=True)
        return len(found)


def _chosen(node: ir.Node, shapes: Mapping[str, Sampled]) -> int | None:
    """Which operand the node always gives."""
    if (node.domain, node.op_type) != ("", "Where") or node.outputs[0].is_graph_output():
        return None
    tensor = stored_tensor(node.inputs[0])
    if tensor is None or not tensor.size:
        return None
    condition = np.asarray(read_array(tensor), bool)
    if condition.any() != condition.all():
        return None
    index = 1 if condition.all() else 2
    value = node.inputs[index]
    known = shapes.get(value.name or "") if value is not None else None
    return index if known is not None and known == shapes.get(node.outputs[0].name or "") else None
