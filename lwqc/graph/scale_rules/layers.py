"""Linear layers, products of matrices and norms: where scales come from and where they go."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from lwqc.graph.linear_operand import linear_operand
from lwqc.graph.scale_labels import Labelling, UnfitError, where
from lwqc.graph.scale_rules.several import one_sided
from lwqc.graph.scale_rules.single import barrier
from lwqc.model.weights import static_shape, stored_tensor

Rule = Callable[[Labelling, ir.Node], None]


def linear(walk: Labelling, node: ir.Node) -> None:
    """A stored weight absorbs scales of its input and of its output channels."""
    operand = linear_operand(node)
    if operand is None and node.op_type == "MatMul":
        _product(walk, node)
        return
    if operand is None or isinstance(operand, str):
        _refuse(walk, node, operand or f"a scale does not pass through {where(node)}")
        return
    if operand.users > 1:
        _refuse(walk, node, f"its weight {operand.weight.name} has other readers")
        return
    sizes = walk.size(node.outputs[0])
    if sizes is None or sizes.rank < 1:
        _refuse(walk, node, f"the rank of {node.outputs[0].name} is not known")
        return
    conv = node.op_type == "Conv"
    out = walk.linear(operand, walk.of(node, 0), 1 if conv else -1)
    if sizes.rank < 2 and conv:
        raise UnfitError(f"{where(node)} gives no channels")
    along = [1] * sizes.rank
    along[1 if conv else -1] = operand.out
    walk.labels[node.outputs[0]] = out.reshape(along)
    has_bias = len(node.inputs) > 2 and node.inputs[2] is not None
    if has_bias and not walk.absorb(node, 2, "bias", out):
        walk.freeze(node.inputs[2], f"is the bias of {where(node)}")
        walk.classes.freeze(out, f"the bias of {where(node)} is not stored per channel")


def _refuse(walk: Labelling, node: ir.Node, reason: str) -> None:
    walk.freeze_operands(node, f"is read by {where(node)}: {reason}")
    walk.refused.append((node, "weight", reason))


def _product(walk: Labelling, node: ir.Node) -> None:
    """Of two computed matrices: attention's weighted sum of values keeps the channels' scales."""
    ranks = [s.rank if (s := walk.size(v)) is not None else 0 for v in node.inputs]
    if min(ranks) < 2:
        barrier(walk, node)
        return
    left, right = walk.of(node, 0), walk.of(node, 1)
    if any(x is not None and x.ndim < 2 for x in (left, right)):
        raise UnfitError(f"{where(node)} multiplies what is no matrix")
    summed = f"{where(node)} sums over the scaled axis"
    if left is not None and left.shape[-1] > 1:
        walk.freeze(node.inputs[0], summed)
        left = None
    if right is not None and right.shape[-2] > 1:
        walk.freeze(node.inputs[1], summed)
        right = None
    one_sided(walk, node, left, right)


def affine_norm(gain: int, bias: int | None, axis: int | None = None) -> Rule:
    """A norm by operand numbers of gain and bias, both along `axis` or the last axes."""

    def rule(walk: Labelling, node: ir.Node) -> None:
        walk.freeze_operands(node, f"is normalised by {where(node)}", but=[])
        sizes = walk.size(node.outputs[0])
        value = node.inputs[gain] if len(node.inputs) > gain else None
        tensor = stored_tensor(value)
        has_bias = bias is not None and len(node.inputs) > bias and node.inputs[bias] is not None
        if tensor is None or sizes is None:
            walk.refused.append((node, "gain", "its gain is not stored, or its rank is not known"))
            return
        shape = static_shape(tensor)
        if axis is not None and (axis >= sizes.rank or shape != (sizes.first[axis],)):
            walk.refused.append((node, "gain", "its gain is not one number per channel"))
            return
        own = walk.classes.fresh(shape)
        if not walk.absorb(node, gain, "gain", own):
            walk.refused.append((node, "gain", "its gain is not a stored float tensor"))
            return
        if has_bias and bias is not None and not walk.absorb(node, bias, "bias", own):
            walk.classes.freeze(own, f"the bias of {where(node)} is not stored per channel")
        along = [1] * (sizes.rank - len(shape)) + list(shape)
        if axis is not None:
            along = [1] * sizes.rank
            along[axis] = shape[0]
        walk.labels[node.outputs[0]] = own.reshape(along)

    return rule
