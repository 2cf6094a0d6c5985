"""Means over all places of an image as pooling."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from lwqc.graph.operands import reduced_axes
from lwqc.model.edit import Rewrite, add_constant, insert_before, replace_node

MIN_OPSET = 13


class GlobalPool(Rewrite):
    """Replace means over all spatial axes by GlobalAveragePool.

    Matches: ReduceMean of a float32 tensor [N, C, H, W] or more over constant axes, all but
        the first two.
    Rewrites to: GlobalAveragePool, and a Squeeze where the axes go. The runtime keeps pooling in
        its blocked layout and has an 8-bit kernel for it, and neither for ReduceMean. The same
        sum in another order.
    Refuses: models of an opset below 13, whose Squeeze is another; other axes,
        axes that are computed, and tensors of unknown rank.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every match of the main graph."""
        done = False
        if model.opset_imports.get("", 1) < MIN_OPSET:
            return ir.passes.PassResult(model, done)
        for node in list(model.graph):
            value = node.inputs[0] if node.inputs else None
            if node.op_type != "ReduceMean" or node.domain != "" or value is None:
                continue
            axes = reduced_axes(node)
            rank = len(value.shape) if value.shape is not None else 0
            if rank < 4 or value.dtype != ir.DataType.FLOAT or axes is None:
                continue
            if sorted(axis % rank for axis in axes) != list(range(2, rank)):
                continue
            _rewrite(model, node, value, rank)
            done = True
        return ir.passes.PassResult(model, done)


def _rewrite(model: ir.Model, node: ir.Node, value: ir.Value, rank: int) -> None:
    graph, out = model.graph, node.outputs[0].name
    (pooled,) = insert_before(node, "GlobalAveragePool", [value], [f"{out}/pooled"])
    kept = node.attributes.get("keepdims")
    if kept is None or kept.as_int():
        replace_node(node, pooled)
        return
    assert value.shape is not None
    pooled.shape = ir.Shape([*value.shape[:2], *[1] * (rank - 2)])
    pooled.type = value.type
    name = f"{out}/squeezed"
    axes = add_constant(graph, f"{name}/axes", np.arange(2, rank))
    (squeezed,) = insert_before(node, "Squeeze", [pooled, axes], [name])
    replace_node(node, squeezed)
