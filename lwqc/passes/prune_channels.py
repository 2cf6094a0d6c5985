"""Removes channels: slices every stored tensor and rewrites what repeats a size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.errors import InputError
from lwqc.graph.axes import Factor, Masks
from lwqc.graph.axis_analysis import AxisAnalysis, Use
from lwqc.graph.consumers import node_name
from lwqc.graph.groups import Groups
from lwqc.model.edit import add_constant, replace_stored
from lwqc.model.weights import static_shape, stored_tensor
from lwqc.passes.repair import repair

Indices = NDArray[np.intp]


@dataclass(frozen=True)
class Pruned:
    """What is left. kept: stored tensor -> axis -> indices that stay; only of sliced axes."""

    kept: Mapping[str, Mapping[int, Indices]]


def prune_channels(groups: Groups, removed: Mapping[str, Sequence[int]]) -> Pruned:
    """Remove indices of groups from the model that they were found in, in place.

    removed: group name -> indices. Every stored tensor loses the slices that belong to them (one
    that several readers need in different slices is copied), and sizes, positions, `group`,
    `num_heads` and the like follow. Attention keeps the scale of the original head size.

    Raises InputError for an unknown group, an index outside it, and when an axis would be empty.
    """
    masks = Masks({groups.by_name[n].factor: m for n, m in _masks(groups, removed).items()})
    emptied = _emptied(groups.analysis, masks)
    if emptied:
        raise InputError(emptied)
    kept = _slice_stored(groups.analysis, masks)
    for item in groups.analysis.repairs:
        repair(item, groups.analysis, masks)
    update_shapes(groups.analysis, masks)
    return Pruned(kept)


def _masks(groups: Groups, removed: Mapping[str, Sequence[int]]) -> dict[str, NDArray[np.bool_]]:
    result = {}
    for name, indices in removed.items():
        group = groups.by_name.get(name)
        if group is None:
            raise InputError(f"{name}: the model has no such group; see lwqc inspect --groups")
        wrong = [i for i in indices if not 0 <= i < group.size]
        if wrong:
            raise InputError(f"{name}: has {group.size} channels, there is no channel {wrong[0]}")
        mask = np.ones(group.size, np.bool_)
        mask[np.asarray(indices, np.intp)] = False
        result[name] = mask
    return result


def empties(groups: Groups, removed: Mapping[str, Sequence[int]]) -> str:
    """The first tensor and axis of which nothing would be left, or ""."""
    masks = Masks({groups.by_name[n].factor: m for n, m in _masks(groups, removed).items()})
    return _emptied(groups.analysis, masks)


def _emptied(analysis: AxisAnalysis, masks: Masks) -> str:
    for value, dims in (*analysis.dims.items(), *analysis.stored.items()):
        for axis, dim in enumerate(dims):
            if masks.touches(dim) and not masks.of(dim).any():
                name = value.value.name if isinstance(value, Use) else value.name
                return f"{name}: nothing would be left of axis {axis}"
    return ""


def _slice_stored(analysis: AxisAnalysis, masks: Masks) -> dict[str, dict[int, Indices]]:
    kept: dict[str, dict[int, Indices]] = {}
    separate: dict[ir.Value, list[tuple[Use, list[Factor]]]] = {}
    for key, dims in analysis.stored.items():
        if isinstance(key, Use):
            separate.setdefault(key.value, []).append((key, dims))
        elif any(masks.touches(d) for d in dims):
            kept[key.name or ""] = _keep(dims, masks)
            _resize(key, _sliced(key, kept[key.name or ""]))
    for value, uses in separate.items():
        found = _slice_uses(analysis.graph, value, uses, masks)
        if found:
            kept[value.name or ""] = found
    return kept


def _keep(dims: Sequence[Factor], masks: Masks) -> dict[int, Indices]:
    return {a: np.flatnonzero(masks.of(d)) for a, d in enumerate(dims) if masks.touches(d)}


def _slice_uses(
    graph: ir.Graph, value: ir.Value, uses: Sequence[tuple[Use, list[Factor]]], masks: Masks
) -> dict[int, Indices]:
    """Slice a tensor that several nodes read: once where they agree, else one copy per reader."""
    wanted = [_keep(dims, masks) for _, dims in uses]
    if not any(wanted):
        return {}
    if len(uses) == len(value.uses()) and all(_equal(w, wanted[0]) for w in wanted[1:]):
        _resize(value, _sliced(value, wanted[0]))
        return wanted[0]
    for (use, _), keep in zip(uses, wanted, strict=True):
        if keep:
            copy = add_constant(
                graph, f"{value.name}/{node_name(use.node)}", _sliced(value, keep).numpy()
            )
            use.node.replace_input_with(use.index, copy)
    return next(w for w in wanted if w)


def _equal(a: Mapping[int, Indices], b: Mapping[int, Indices]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def _sliced(value: ir.Value, keep: Mapping[int, Indices]) -> ir.TensorProtocol:
    """Evaluated when it is saved: only one weight is in memory at a time."""
    tensor = stored_tensor(value)
    assert tensor is not None
    shape = [len(keep[a]) if a in keep else n for a, n in enumerate(static_shape(tensor))]

    def evaluate() -> ir.TensorProtocol:
        array = tensor.numpy()
        for axis, indices in keep.items():
            array = np.take(array, indices, axis)
        return ir.tensor(np.ascontiguousarray(array), dtype=tensor.dtype, name=tensor.name)

    return ir.LazyTensor(
        evaluate, dtype=tensor.dtype, shape=ir.Shape(shape), name=tensor.name, cache=True
    )


def _resize(value: ir.Value, tensor: ir.TensorProtocol) -> None:
    replace_stored(value, tensor)
    value.shape = ir.Shape(static_shape(tensor))


def update_shapes(analysis: AxisAnalysis, masks: Masks) -> None:
    """Correct the known shapes of computed tensors."""
    for value, dims in analysis.dims.items():
        if value.shape is None or not any(masks.touches(d) for d in dims):
            continue
        sampled = analysis.shapes.get(value.name or "")
        value.shape = ir.Shape(
            old
            if not masks.touches(dim)
            else (int(masks.of(dim).sum()) if sampled and sampled.static(axis) else None)
            for axis, (old, dim) in enumerate(zip(value.shape, dims, strict=True))
        )
