"""Gathers that read a flat tensor in its own order, as reshapes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from lwqc.graph.integers import Integers
from lwqc.graph.sampled import Sampled
from lwqc.model.edit import add_constant, insert_before, replace_node
from lwqc.model.unused import RemoveUnused
from lwqc.passes.base import Pass
from lwqc.passes.context import Context


class StridedReshape(Pass):
    """Write gathers of a vector that read it in its own order as Reshape.

    Matches: what `strided_to_reshape` matches, as torch's dynamo exporter writes `as_strided`.
    Rewrites to: Reshape. Exact.
    Refuses: two dimensions that depend on the input.
    """

    needs_sizes = True

    def rewrite(self, model: ir.Model, ctx: Context) -> int:
        """Rewrite every match of the main graph."""
        return strided_to_reshape(model, ctx.shapes)


def strided_to_reshape(model: ir.Model, shapes: Mapping[str, Sampled]) -> int:
    """Replace identity gathers; returns how many.

    Matches `Gather(flat, indices)` on axis 0 of a vector, where the indices are computed from the
    shapes and are 0, 1, 2, ... in row-major order, as torch's dynamo exporter writes `as_strided`.
    Rewrites to `Reshape`; a dimension that depends on the input becomes -1.
    Refuses when two dimensions depend on the input. Exact.

    shapes: of the main graph's tensors, see `graph.shapes.declared_shapes`.
    """
    integers = Integers(model.graph, shapes)
    done = 0
    for node in list(model.graph):
        target = _target(node, integers, shapes)
        if target is None:
            continue
        name = node.outputs[0].name or "strided"
        constant = add_constant(model.graph, f"{name}/shape", target)
        (value,) = insert_before(node, "Reshape", [node.inputs[0], constant], [f"{name}/reshaped"])
        replace_node(node, value)
        done += 1
    if done:
        RemoveUnused()(model)
    return done


def _target(node: ir.Node, integers: Integers, shapes: Mapping[str, Sampled]) -> np.ndarray | None:
    if node.domain or node.op_type != "Gather":
        return None
    data = node.inputs[0]
    both = integers.both(node.inputs[1])
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
    sampled = shapes.get(data.name or "") if data is not None else None
    if both is None or axis or sampled is None or sampled.rank != 1:
        return None
    first, second = both
    if first.ndim < 2 or first.ndim != second.ndim or not (_counts(first) and _counts(second)):
        return None
    target = [a if a == b else -1 for a, b in zip(first.shape, second.shape, strict=True)]
    return np.asarray(target, np.int64) if target.count(-1) <= 1 else None


def _counts(values: np.ndarray) -> bool:
    return bool(np.array_equal(values.ravel(), np.arange(values.size)))
