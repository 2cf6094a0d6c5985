"""Operators that only move numbers: reshapes, permutations, parts and joins."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import onnx_ir as ir

from lwqc.graph.sampled import Sampled
from lwqc.graph.scale_labels import Labelling, Labels, UnfitError, where
from lwqc.graph.scale_rules.several import alike, broadcast_shape
from lwqc.graph.scale_rules.single import axes_of


def reshape(walk: Labelling, node: ir.Node) -> None:
    """Splits and merges axes; also Squeeze, Unsqueeze and Flatten."""
    labels = walk.of(node, 0)
    if labels is None:
        return
    shape = _regrouped(labels, walk.size(node.inputs[0]), walk.size(node.outputs[0]))
    if shape is None:
        walk.freeze(node.inputs[0], f"{where(node)} mixes the scaled axis with others")
        return
    full, result = shape
    walk.labels[node.outputs[0]] = np.broadcast_to(labels, full).reshape(result)


def _regrouped(
    labels: Labels, before: Sampled | None, after: Sampled | None
) -> tuple[list[int], list[int]] | None:
    """Shapes of the labels before and after: full where an axis is regrouped with a scaled one."""
    if before is None or after is None or labels.ndim != before.rank:
        return None
    full, result = [1] * before.rank, [1] * after.rank
    i = j = 0
    while i < before.rank or j < after.rank:
        start, begin = i, j
        i, j = i + 1, j + 1
        while (a := _elements(before, start, i)) != (b := _elements(after, begin, j)):
            if i >= before.rank and j >= after.rank:
                return None
            if j >= after.rank or (i < before.rank and a[0] < b[0]):
                i += 1
            else:
                j += 1
        inside = range(start, min(i, before.rank))
        if any(labels.shape[a] > 1 for a in inside):
            outside = range(begin, min(j, after.rank))
            if not all(map(before.static, inside)) or not all(map(after.static, outside)):
                return None
            full[start:i] = before.first[start:i]
            result[begin:j] = after.first[begin:j]
    return full, result


def _elements(sizes: Sampled, start: int, end: int) -> tuple[int, int]:
    return (int(np.prod(sizes.first[start:end])), int(np.prod(sizes.second[start:end])))


def transpose(walk: Labelling, node: ir.Node) -> None:
    """Permutes axes."""
    labels = walk.of(node, 0)
    if labels is None:
        return
    axes = list(range(labels.ndim))
    perm = list(node.attributes["perm"].as_ints()) if "perm" in node.attributes else axes[::-1]
    if sorted(perm) != axes:
        raise UnfitError(f"{where(node)} has an order that is none of its axes")
    walk.labels[node.outputs[0]] = labels.transpose(perm)


def cut(walk: Labelling, node: ir.Node) -> None:
    """Slice: parts of the scaled axis keep their own scales."""
    labels = walk.of(node, 0)
    if labels is None:
        return
    chosen = _sliced(walk, node, labels)
    if chosen is None:
        walk.freeze(node.inputs[0], f"{where(node)} cuts the scaled axis where the data say")
        return
    walk.labels[node.outputs[0]] = labels[chosen]


def _sliced(walk: Labelling, node: ir.Node, labels: Labels) -> tuple[slice, ...] | None:
    chosen = [slice(None)] * labels.ndim
    if "starts" in node.attributes:  # before opset 10
        starts, ends = (list(node.attributes[n].as_ints()) for n in ("starts", "ends"))
        axes = axes_of(walk, node, 3)
        bounds: list[Sequence[int] | None] = [starts, ends, None]
        count = len(starts)
    else:
        operands = [node.inputs[i] if i < len(node.inputs) else None for i in (1, 2, 4)]
        known = [walk.integers.static(v) for v in operands]
        bounds = [None if k is None else [int(x) for x in k.ravel()] for k in known]
        size = walk.size(operands[0])
        axes = axes_of(walk, node, 3)
        if axes is None and len(node.inputs) > 3 and node.inputs[3] is not None:
            return None
        if size is None or size.rank != 1:
            return None
        count = size.first[0]
        if operands[2] is not None and bounds[2] is None:
            return None
    for position, axis in enumerate(axes if axes is not None else range(count)):
        if not -labels.ndim <= axis < labels.ndim:
            raise UnfitError(f"{where(node)} cuts an axis that is not there")
        if labels.shape[axis] == 1:
            continue
        if any(bound is not None and position >= len(bound) for bound in bounds):
            raise UnfitError(f"{where(node)} has lists of different lengths")
        if bounds[0] is None or bounds[1] is None:
            return None
        step = bounds[2][position] if bounds[2] is not None else 1
        start, end = bounds[0][position], bounds[1][position]
        if step < 1:
            return None
        chosen[axis] = slice(start, end, step)
    return tuple(chosen)


def split(walk: Labelling, node: ir.Node) -> None:
    """As several slices."""
    labels = walk.of(node, 0)
    if labels is None:
        return
    axis = _axis(node, labels)
    if labels.shape[axis] == 1:
        for output in node.outputs:
            walk.labels[output] = labels
        return
    sizes = [walk.size(v) for v in node.outputs]
    known = [s.first[axis] for s in sizes if s is not None and axis < s.rank and s.static(axis)]
    if len(known) != len(sizes) or sum(known) != labels.shape[axis]:
        walk.freeze(node.inputs[0], f"{where(node)} cuts the scaled axis into unknown parts")
        return
    ends = np.cumsum([0, *known])
    for output, (start, end) in zip(node.outputs, pairwise(ends), strict=True):
        walk.labels[output] = labels.take(range(start, end), axis)


def gather(walk: Labelling, node: ir.Node) -> None:
    """Picks known channels, or anything along other axes."""
    labels, sizes = walk.of(node, 0), walk.size(node.inputs[1])
    walk.freeze(node.inputs[1], f"is an index of {where(node)}")
    if labels is None:
        return
    axis = _axis(node, labels)
    indices = walk.integers.static(node.inputs[1])
    if labels.shape[axis] == 1 and sizes is not None:
        indices = np.zeros((1,) * sizes.rank, np.intp)
    if indices is None:
        walk.freeze(node.inputs[0], f"{where(node)} picks scaled channels by the data")
        return
    size = labels.shape[axis]
    if indices.size and not (-size <= indices.min() and indices.max() < size):
        raise UnfitError(f"{where(node)} picks channels that are not there")
    walk.labels[node.outputs[0]] = labels.take(indices.astype(np.intp), axis)


def concat(walk: Labelling, node: ir.Node) -> None:
    """Joins scaled axes, or tensors that must be scaled alike along another one."""
    found = [walk.of(node, i) for i in range(len(node.inputs))]
    known = [x for x in found if x is not None]
    if not known:
        return
    axis = _axis(node, known[0])
    if any(x.ndim != known[0].ndim for x in known):
        raise UnfitError(f"{where(node)} joins tensors of different ranks")
    if all(x.shape[axis] == 1 for x in known):
        alike(walk, node, range(len(node.inputs)))
        return
    sizes = [walk.size(v) for v in node.inputs]
    parts = []
    for value, labels, size in zip(node.inputs, found, sizes, strict=True):
        if size is None or axis >= size.rank or not size.static(axis):
            walk.freeze_operands(node, f"{where(node)} joins parts of unknown sizes")
            return
        if labels is None:
            labels = walk.classes.fresh((1,) * size.rank)
            name = value.name if value is not None else ""
            walk.classes.freeze(labels, f"{name} cannot be scaled")
        shape = list(labels.shape)
        if shape[axis] not in (1, size.first[axis]) or len(shape) != known[0].ndim:
            raise UnfitError(f"{where(node)} joins tensors that do not fit")
        shape[axis] = size.first[axis]
        parts.append(np.broadcast_to(labels, shape))
    wide = broadcast_shape(node, *[(*p.shape[:axis], 1, *p.shape[axis + 1 :]) for p in parts])
    walk.labels[node.outputs[0]] = np.concatenate(
        [np.broadcast_to(p, (*wide[:axis], p.shape[axis], *wide[axis + 1 :])) for p in parts], axis
    )


def _axis(node: ir.Node, labels: Labels) -> int:
    attribute = node.attributes.get("axis")
    if not labels.ndim:
        raise UnfitError(f"{where(node)} takes an axis of a single number")
    return (attribute.as_int() if attribute is not None else 0) % labels.ndim
