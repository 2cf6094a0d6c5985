"""Operators that change the numbers of one tensor, each by itself or over other axes."""

from __future__ import annotations

import onnx_ir as ir

from lwqc.graph.sampled import Sampled
from lwqc.graph.scale_labels import Labelling, Labels, UnfitError, where
from lwqc.model.weights import stored_tensor


def barrier(walk: Labelling, node: ir.Node) -> None:
    """Any operator without a rule."""
    walk.freeze_operands(node, f"a scale does not pass through {where(node)}")


def shape_only(walk: Labelling, node: ir.Node) -> None:
    """Reads sizes, not numbers."""


def same(walk: Labelling, node: ir.Node) -> None:
    """f(x/s) = f(x)/s for every number by itself; all other operands stay."""
    walk.freeze_operands(node, f"controls {where(node)}", but=[0])
    _give(walk, node, walk.of(node, 0))


def _give(walk: Labelling, node: ir.Node, labels: Labels | None, index: int = 0) -> None:
    """Label an output, with axes of size 1 in front as its rank asks."""
    if labels is None:
        return
    sizes = walk.size(node.outputs[index])
    if sizes is not None and sizes.rank > labels.ndim:
        labels = labels.reshape((1,) * (sizes.rank - labels.ndim) + labels.shape)
    walk.labels[node.outputs[index]] = labels


def dropout(walk: Labelling, node: ir.Node) -> None:
    """Does nothing but in training."""
    training = len(node.inputs) > 2 and node.inputs[2] is not None
    (barrier if training else same)(walk, node)


def cast(walk: Labelling, node: ir.Node) -> None:
    """Between float types."""
    to = node.attributes["to"].as_int()
    floating = to in set(ir.DataType) and ir.DataType(to).is_floating_point()
    (same if floating else barrier)(walk, node)


def clip(walk: Labelling, node: ir.Node) -> None:
    """As Relu: no bound but 0."""
    bounds = [number(v) for v in node.inputs[1:] if v is not None]
    bounds += [node.attributes[n].as_float() for n in ("min", "max") if n in node.attributes]
    if any(b != 0 for b in bounds):
        walk.freeze_operands(node, f"{where(node)} has a bound other than 0")
        return
    same(walk, node)


def number(value: ir.Value | None) -> float | None:
    """A stored scalar."""
    tensor = stored_tensor(value)
    return float(tensor.numpy().ravel()[0]) if tensor is not None and tensor.size == 1 else None


def spatial(walk: Labelling, node: ir.Node) -> None:
    """Works on each channel [N, C, ...] by itself."""
    labels = walk.of(node, 0)
    if labels is not None and any(n > 1 for n in labels.shape[2:]):
        walk.freeze(node.inputs[0], f"{where(node)} mixes scaled positions")
        return
    same(walk, node)


def resize(walk: Labelling, node: ir.Node) -> None:
    """Interpolates along other axes."""
    mode = node.attributes.get("coordinate_transformation_mode")
    labels, before, after = walk.of(node, 0), walk.size(node.inputs[0]), walk.size(node.outputs[0])
    crops = mode is not None and mode.as_string() == "tf_crop_and_resize"
    if crops or not _untouched(labels, before, after):
        barrier(walk, node)
        return
    same(walk, node)


def _untouched(labels: Labels | None, before: Sampled | None, after: Sampled | None) -> bool:
    """Whether sizes along the scaled axes are the same."""
    if labels is None:
        return True
    if before is None or after is None or not before.rank == after.rank == labels.ndim:
        return False
    return all(before.first[a] == after.first[a] for a, n in enumerate(labels.shape) if n > 1)


def pad(walk: Labelling, node: ir.Node) -> None:
    """With zeros, along other axes."""
    mode = node.attributes.get("mode")
    constant = mode is None or mode.as_string() == "constant"
    value = node.inputs[2] if len(node.inputs) > 2 else None
    zero = value is None or number(value) == 0
    labels, before, after = walk.of(node, 0), walk.size(node.inputs[0]), walk.size(node.outputs[0])
    if "value" in node.attributes:
        zero = node.attributes["value"].as_float() == 0
    if (constant and not zero) or not _untouched(labels, before, after):
        barrier(walk, node)
        return
    same(walk, node)


def reduce(walk: Labelling, node: ir.Node) -> None:
    """Over axes that are not scaled."""
    labels, sizes = walk.of(node, 0), walk.size(node.inputs[0])
    if labels is None:
        return
    axes = axes_of(walk, node, 1)
    if any(not -labels.ndim <= a < labels.ndim for a in axes or ()):
        raise UnfitError(f"{where(node)} reduces an axis that is not there")
    if axes is None or sizes is None or any(labels.shape[a] > 1 for a in axes):
        walk.freeze(node.inputs[0], f"{where(node)} reduces the scaled axis")
        return
    keep = "keepdims" not in node.attributes or node.attributes["keepdims"].as_int()
    left = [
        n for a, n in enumerate(labels.shape) if keep or a not in {x % labels.ndim for x in axes}
    ]
    walk.labels[node.outputs[0]] = labels.reshape(left)


def axes_of(walk: Labelling, node: ir.Node, operand: int) -> list[int] | None:
    """The attribute or operand of that name; None where it is left out or not known."""
    if "axes" in node.attributes:
        return [int(a) for a in node.attributes["axes"].as_ints()]
    value = node.inputs[operand] if len(node.inputs) > operand else None
    found = walk.integers.static(value)
    return None if found is None else [int(a) for a in found.ravel()]
