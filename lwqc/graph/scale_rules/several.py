"""Operators that combine tensors element by element."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from lwqc.graph.scale_labels import Labelling, Labels, UnfitError, where
from lwqc.graph.scale_rules.single import number
from lwqc.model.weights import static_shape, stored_tensor, trace_weight


def total(walk: Labelling, node: ir.Node) -> None:
    """f(x/s, y/s) = f(x, y)/s: additions, extremes, choices."""
    first = 1 if node.op_type == "Where" else 0
    alike(walk, node, range(first, len(node.inputs)))


def alike(walk: Labelling, node: ir.Node, indices: range) -> None:
    """All operands get the same scale, stored ones too."""
    found = {i: x for i in indices if (x := walk.of(node, i)) is not None}
    if not found:
        return
    output = _broadcast(walk, node, list(found.values()))
    if output is None:
        return
    for labels in found.values():
        walk.classes.unite(labels, output)
    for i in indices:
        value = node.inputs[i]
        if i in found or value is None or _unchanged(value):
            continue
        constant = trace_weight(value) is not None
        if not (constant and walk.absorb(node, i, "bias", output)):
            what = (
                "one number for all channels" if constant else f"{value.name}, which is not scaled"
            )
            walk.classes.freeze(output, f"{where(node)} combines it with {what}")
    walk.labels[node.outputs[0]] = output


def _unchanged(value: ir.Value) -> bool:
    """Whether a number is the same after any positive scale."""
    constant = number(value)
    return constant is not None and (constant == 0 or bool(np.isinf(constant)))


def _broadcast(walk: Labelling, node: ir.Node, found: Sequence[Labels]) -> Labels | None:
    """The operands' ids in one array of the output's rank."""
    sizes = walk.size(node.outputs[0])
    if sizes is None:
        walk.freeze_operands(node, f"the rank of {node.outputs[0].name} is not known")
        return None
    shape = broadcast_shape(node, (1,) * sizes.rank, *(x.shape for x in found))
    return np.broadcast_to(found[0], shape)


def broadcast_shape(node: ir.Node, *shapes: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that all of them broadcast to. Raises UnfitError."""
    rank = max(map(len, shapes))
    padded = [(1,) * (rank - len(shape)) + tuple(shape) for shape in shapes]
    wide = tuple(next((n for n in sizes if n != 1), 1) for sizes in zip(*padded, strict=True))
    if any(n not in (1, w) for shape in padded for n, w in zip(shape, wide, strict=True)):
        raise UnfitError(f"{where(node)} combines tensors that do not fit")
    return wide


def multiply(walk: Labelling, node: ir.Node) -> None:
    """One side is scaled; a stored vector gives its output any scale."""
    constants = [i for i, v in enumerate(node.inputs) if trace_weight(v) is not None]
    if len(constants) == 1 and _is_vector(node.inputs[constants[0]]):
        _gain(walk, node, constants[0])
        return
    one_sided(walk, node, walk.of(node, 0), walk.of(node, 1))


def one_sided(walk: Labelling, node: ir.Node, left: Labels | None, right: Labels | None) -> None:
    """A product of two: of two scaled sides, the right one is chosen."""
    chosen = right if walk.is_free(right) else left
    if walk.is_free(left) and chosen is right:
        walk.freeze(node.inputs[0], f"{where(node)} multiplies it with another scaled tensor")
    if chosen is not None and (output := _broadcast(walk, node, [chosen])) is not None:
        walk.labels[node.outputs[0]] = output


def _is_vector(value: ir.Value | None) -> bool:
    weight = trace_weight(value)
    if weight is None or weight.steps:
        return False
    return weight.tensor.size > 1 and max(static_shape(weight.tensor)) == weight.tensor.size


def _gain(walk: Labelling, node: ir.Node, operand: int) -> None:
    walk.freeze_operands(
        node, f"{where(node)} multiplies it by a stored vector, which ends what can be scaled"
    )
    value, sizes = node.inputs[operand], walk.size(node.outputs[0])
    tensor = stored_tensor(value)
    if tensor is None or sizes is None:
        return
    shape = static_shape(tensor)
    labels = walk.classes.fresh((1,) * (sizes.rank - len(shape)) + shape)
    if walk.absorb(node, operand, "gain", labels):
        walk.labels[node.outputs[0]] = labels


def divide(walk: Labelling, node: ir.Node) -> None:
    """By something that is not scaled."""
    walk.freeze(node.inputs[1], f"{where(node)} divides by it")
    labels = walk.of(node, 0)
    if labels is not None and (output := _broadcast(walk, node, [labels])) is not None:
        walk.labels[node.outputs[0]] = output
