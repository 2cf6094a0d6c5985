"""Writes root-mean-square normalisation as one operator."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from lwqc.graph.attention_core import scalar
from lwqc.graph.operands import either_way, made_by, only_reader, reduced_axes
from lwqc.model.edit import insert_before, replace_node
from lwqc.model.weights import static_shape, stored_tensor
from lwqc.passes.base import Pass
from lwqc.passes.context import Context

OPSET = 23  # the first with RMSNormalization


@dataclass(frozen=True, eq=False)
class _Norm:
    """out = x / sqrt(mean(x²) + epsilon) * scale."""

    out: ir.Node
    x: ir.Value
    scale: ir.Value
    epsilon: float


class FuseRmsNorm(Pass):
    """Write x / sqrt(mean(x²) + epsilon) * scale as RMSNormalization.

    Matches: float32 squares by Pow or Mul, their mean over the last axis, a stored epsilon, the
        root as Sqrt with Reciprocal or Div, and a product with a stored scale of that axis.
    Rewrites to: RMSNormalization. Sums in another order.
    Refuses: opsets without it, other axes and types, roots without an epsilon, scales of other
        shapes, and values less their mean, which are layer norms.
    """

    keeps_sizes = True

    def rewrite(self, model: ir.Model, ctx: Context) -> int:
        """Fuse every norm of the main graph."""
        norms = find_rms_norms(model.graph)
        if model.opset_imports.get("", 1) < OPSET or not norms:
            return 0
        for norm in norms:
            name = f"{norm.out.outputs[0].name}/norm"
            attributes: dict[str, int | float] = {"axis": -1, "epsilon": norm.epsilon}
            inputs = [norm.x, norm.scale]
            (value,) = insert_before(norm.out, "RMSNormalization", inputs, [name], attributes)
            replace_node(norm.out, value)
        return len(norms)


def find_rms_norms(graph: ir.Graph) -> list[_Norm]:
    """The norms of a graph, in order."""
    found = (_norm(node) for node in graph if node.op_type == "ReduceMean" and node.domain == "")
    return [norm for norm in found if norm is not None]


def _norm(mean: ir.Node) -> _Norm | None:
    x = _squared(mean.inputs[0])
    if x is None or not _over_last_axis(mean, x) or x.dtype != ir.DataType.FLOAT:
        return None
    if _is_centred(x):
        return None
    shifted = only_reader(mean.outputs[0])
    if shifted is None or shifted.op_type != "Add":
        return None
    epsilon = next((e for a, b in either_way(shifted) if (e := scalar(b)) is not None), None)
    root = only_reader(shifted.outputs[0])
    if epsilon is None or epsilon < 0 or root is None or root.op_type != "Sqrt":
        return None
    normed = _normed(root, x)
    scaled = only_reader(normed.outputs[0]) if normed is not None else None
    if normed is None or scaled is None or scaled.op_type != "Mul":
        return None
    for value, scale in either_way(scaled):
        if value is normed.outputs[0] and _fits(scale, x):
            return _Norm(scaled, x, scale, epsilon)
    return None


def _squared(value: ir.Value | None) -> ir.Value | None:
    node = made_by(value, "Pow", "Mul")
    if node is None or node.inputs[0] is None:
        return None
    if node.op_type == "Mul":
        return node.inputs[0] if node.inputs[0] is node.inputs[1] else None
    return node.inputs[0] if scalar(node.inputs[1]) == 2 else None


def _is_centred(x: ir.Value) -> bool:
    """Whether a mean was taken off: then it is a layer norm, which runtimes fuse as a whole."""
    node = made_by(x, "Sub")
    mean = made_by(node.inputs[1], "ReduceMean") if node is not None else None
    return node is not None and mean is not None and mean.inputs[0] is node.inputs[0]


def _over_last_axis(mean: ir.Node, x: ir.Value) -> bool:
    kept = mean.attributes.get("keepdims")
    last = -1 if x.shape is None else len(x.shape) - 1
    return reduced_axes(mean) in ([-1], [last]) and (kept is None or kept.as_int() == 1)


def _normed(root: ir.Node, x: ir.Value) -> ir.Node | None:
    """The node that divides `x` by the root."""
    after = only_reader(root.outputs[0])
    if after is None:
        return None
    if after.op_type == "Div" and list(after.inputs) == [x, root.outputs[0]]:
        return after
    if after.op_type == "Div" and scalar(after.inputs[0]) != 1:
        return None
    if after.op_type not in ("Reciprocal", "Div"):
        return None
    product = only_reader(after.outputs[0])
    if product is None or product.op_type != "Mul":
        return None
    return product if {*product.inputs} == {x, after.outputs[0]} else None


def _fits(scale: ir.Value, x: ir.Value) -> bool:
    tensor = stored_tensor(scale)
    if tensor is None or x.shape is None or tensor.dtype != ir.DataType.FLOAT:
        return False
    return static_shape(tensor) == (x.shape[-1],)
