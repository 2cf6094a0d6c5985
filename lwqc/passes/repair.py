"""Rewrites sizes, positions and counts that a node states, after channels went."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import singledispatch

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.errors import InputError
from lwqc.graph.axes import Factor, Masks
from lwqc.graph.axis_analysis import AxisAnalysis
from lwqc.graph.repairs import (
    AtLeast,
    Bounds,
    Count,
    Indices,
    Pieces,
    Pinned,
    Repair,
    ReportedShape,
    Sizes,
    SqueezedAxes,
)
from lwqc.model.edit import add_constant
from lwqc.model.names import unique_name
from lwqc.model.weights import stored_tensor

Ints = NDArray[np.int64]
_AXES_OPERAND_FROM = 13  # opset in which the axes of Squeeze became an operand


@dataclass(frozen=True)
class _Entry:
    """One number of a list. value: what it becomes; else it is scaled by new / old."""

    position: int
    value: int | None
    new: int
    old: int


@singledispatch
def repair(item: Repair, analysis: AxisAnalysis, masks: Masks) -> None:
    """Rewrite one node for the channels that are gone; does nothing where none are."""
    raise TypeError(f"no rewrite for {type(item).__name__}")


@repair.register
def _sizes(item: Sizes, analysis: AxisAnalysis, masks: Masks) -> None:
    source = analysis.operand(item.node, 0) or []
    entries = [
        _size_entry(item, position, dim, analysis, masks)
        for position, dim in item.entries
        # A 0 in a Reshape copies the input's size at that position, whatever dimension that is.
        if masks.touches(dim) or (position < len(source) and masks.touches(source[position]))
    ]
    if entries:
        _write_default(item)
        _rewrite(analysis, item.node, item.operand, entries, _keeps_marker(item, analysis, masks))


def _write_default(item: Sizes) -> None:
    """An attribute that was left out stands for the sizes before."""
    if isinstance(item.operand, str) and item.operand not in item.node.attributes:
        old = [dim.size for _, dim in item.entries]
        item.node.attributes[item.operand] = ir.AttrInt64s(item.operand, old)


def _size_entry(
    item: Sizes, position: int, dim: Factor, analysis: AxisAnalysis, masks: Masks
) -> _Entry:
    new = int(masks.of(dim).sum())
    output = analysis.shapes.get(item.node.outputs[0].name or "")
    dynamic = output is not None and position < output.rank and not output.static(position)
    return _Entry(position, None if dynamic else new, new, dim.size)


def _keeps_marker(
    item: Sizes, analysis: AxisAnalysis, masks: Masks
) -> Callable[[_Entry, int], bool]:
    """Whether a number in the list means something else than a size and stays."""
    dims = analysis.operand(item.node, 0) or []

    def keeps(entry: _Entry, old: int) -> bool:
        if old == 0:
            same = entry.position < len(dims) and int(masks.of(dims[entry.position]).sum())
            return entry.value is None or same == entry.value
        return old == -1 or (old == 1 and entry.old > 1)

    return keeps


@repair.register
def _bounds(item: Bounds, analysis: AxisAnalysis, masks: Masks) -> None:
    entries = [
        _Entry(position, int(masks.of(dim)[:old].sum()), 0, 1)
        for position, dim, old in item.entries
        if masks.touches(dim)
    ]
    if entries:
        _rewrite(analysis, item.node, item.operand, entries, lambda entry, old: False)


@repair.register
def _at_least(item: AtLeast, analysis: AxisAnalysis, masks: Masks) -> None:
    left = int(masks.of(item.dimension).sum())
    if left < item.count:
        raise InputError(
            f"{item.node.op_type} {item.node.name}: takes {item.count} of {item.dimension.size}, "
            f"{left} would be left"
        )


@repair.register
def _indices(item: Indices, analysis: AxisAnalysis, masks: Masks) -> None:
    if not masks.touches(item.dimension):
        return
    mask = masks.of(item.dimension)
    value = item.node.inputs[item.operand]
    tensor = stored_tensor(value)
    if value is None:
        return
    if tensor is None:
        raise ValueError(f"{item.node.name}: indices are constant but computed")
    old = tensor.numpy()
    renumbered = (np.cumsum(mask) - 1)[np.where(old < 0, old + mask.size, old)].astype(old.dtype)
    _replace(item.node, item.operand, renumbered)


@repair.register
def _count(item: Count, analysis: AxisAnalysis, masks: Masks) -> None:
    if masks.touches(item.dimension):
        size = int(masks.of(item.dimension).sum())
        item.node.attributes[item.attribute] = ir.AttrInt64(item.attribute, size)


@repair.register
def _pinned(item: Pinned, analysis: AxisAnalysis, masks: Masks) -> None:
    if masks.touches(item.dimension):
        item.node.attributes[item.attribute] = ir.AttrFloat32(item.attribute, item.value)


@repair.register
def _squeezed(item: SqueezedAxes, analysis: AxisAnalysis, masks: Masks) -> None:
    if not any(masks.touches(dim) and masks.of(dim).sum() == 1 for dim in item.dims):
        return
    if analysis.opset < _AXES_OPERAND_FROM:
        item.node.attributes["axes"] = ir.AttrInt64s("axes", item.axes)
    else:
        _replace(item.node, 1, np.asarray(item.axes, np.int64))


@repair.register
def _pieces(item: Pieces, analysis: AxisAnalysis, masks: Masks) -> None:
    if not any(masks.touches(piece) for piece in item.pieces):
        return
    node = item.node
    sizes = [int(masks.of(piece).sum()) for piece in item.pieces]
    if "split" in node.attributes:
        node.attributes["split"] = ir.AttrInt64s("split", sizes)
    elif len(node.inputs) > 1 and node.inputs[1] is not None:
        _replace(node, 1, np.asarray(sizes, np.int64))
    elif len(set(sizes)) > 1:
        node.attributes.pop("num_outputs", None)
        _replace(node, 1, np.asarray(sizes, np.int64))


@repair.register
def _reported(item: ReportedShape, analysis: AxisAnalysis, masks: Masks) -> None:
    if not any(masks.touches(dim) for dim in item.dims):
        return
    output = item.node.outputs[0]
    readers = list(output.uses())
    if item.node.op_type == "Size":
        old = int(np.prod([d.size for d in item.dims if masks.touches(d)]))
        new = int(np.prod([masks.of(d).sum() for d in item.dims if masks.touches(d)]))
        value = _scaled(item.node, output, np.asarray(old), np.asarray(new))
    else:
        value = _original_sizes(item, analysis, masks, output)
    for use in readers:
        use.node.replace_input_with(use.idx, value)


def _original_sizes(
    item: ReportedShape, analysis: AxisAnalysis, masks: Masks, output: ir.Value
) -> ir.Value:
    source = analysis.shapes.get((item.node.inputs[0].name or "") if item.node.inputs[0] else "")
    start = item.node.attributes["start"].as_int() if "start" in item.node.attributes else 0
    entries = []
    for position, dim in enumerate(item.dims):
        if masks.touches(dim):
            axis = position + (start if start >= 0 else start + (source.rank if source else 0))
            dynamic = source is not None and not source.static(axis)
            new = int(masks.of(dim).sum())
            entries.append(_Entry(position, None if dynamic else dim.size, dim.size, new))
    return _computed(item.node, output, len(item.dims), entries)


def _rewrite(
    analysis: AxisAnalysis,
    node: ir.Node,
    operand: int | str,
    entries: Sequence[_Entry],
    keeps: Callable[[_Entry, int], bool],
) -> None:
    if isinstance(operand, str):
        old = np.asarray(node.attributes[operand].as_ints(), np.int64)
        new = _edited(old, entries, keeps)
        node.attributes[operand] = ir.AttrInt64s(operand, [int(v) for v in new])
        return
    value = node.inputs[operand]
    if value is None:
        return
    tensor = stored_tensor(value)
    if tensor is not None:
        old_values = tensor.numpy()
        new = _edited(old_values.ravel(), entries, keeps).reshape(old_values.shape)
        if not np.array_equal(new, old_values):
            _replace(node, operand, new)
    else:
        known = analysis.operand(node, operand)
        # A value that another repair put there is not in the analysis, but carries its shape.
        length = known[0].size if known else _length(node, value)
        node.replace_input_with(operand, _computed(node, value, length, entries, before=True))


def _length(node: ir.Node, value: ir.Value) -> int:
    """How many sizes the node reads. Raises InputError where that is not known."""
    size = value.shape[0] if value.shape is not None and len(value.shape) else None
    result = node.outputs[0].shape
    if not isinstance(size, int) and node.op_type == "Reshape" and result is not None:
        size = len(result)
    if not isinstance(size, int):
        name = node.name or node.outputs[0].name
        raise InputError(f"{node.op_type} {name}: how many sizes it reads is not known")
    return size


def _edited(old: Ints, entries: Sequence[_Entry], keeps: Callable[[_Entry, int], bool]) -> Ints:
    new = old.copy()
    for entry in entries:
        here = int(old[entry.position])
        if not keeps(entry, here):
            scaled = here * entry.new // entry.old
            new[entry.position] = scaled if entry.value is None else entry.value
    return new


def _replace(node: ir.Node, operand: int, values: NDArray[np.generic]) -> None:
    graph = node.graph
    if not isinstance(graph, ir.Graph):
        raise ValueError(f"{node.name} is in no graph")
    constant = add_constant(graph, f"{node.outputs[0].name}/pruned_{operand}", values)
    if operand == len(node.inputs):
        node.resize_inputs(operand + 1)
    node.replace_input_with(operand, constant)


def _computed(
    node: ir.Node, value: ir.Value, length: int, entries: Sequence[_Entry], before: bool = False
) -> ir.Value:
    """A list that the graph computes, with some numbers set and others scaled."""
    scale_new, scale_old = np.ones((2, length), np.int64)
    fixed, known = np.zeros(length, np.bool_), np.zeros(length, np.int64)
    for entry in entries:
        if entry.value is None:
            scale_new[entry.position], scale_old[entry.position] = entry.new, entry.old
        else:
            fixed[entry.position], known[entry.position] = True, entry.value
    if (scale_new != scale_old).any():
        value = _scaled(node, value, scale_new, scale_old, before)
    if fixed.any():
        name = f"{node.outputs[0].name}/sizes"
        operands = [_constant(node, f"{name}_fixed", fixed), _constant(node, f"{name}_new", known)]
        value = _insert(node, "Where", [*operands, value], [length], before)
    value.shape, value.type = ir.Shape([length]), ir.TensorType(ir.DataType.INT64)
    return value


def _scaled(
    node: ir.Node,
    value: ir.Value,
    new: NDArray[np.generic],
    old: NDArray[np.generic],
    before: bool = False,
) -> ir.Value:
    """value * new / old, where it is a size; -1 and 0 mean something else."""
    name = f"{node.outputs[0].name}/scale"
    zero = _constant(node, f"{name}_zero", np.asarray(0, np.int64))
    factor, divisor = _constant(node, f"{name}_new", new), _constant(node, f"{name}_old", old)
    positive = _insert(node, "Greater", [value, zero], new.shape, before)
    product = _insert(node, "Mul", [value, factor], new.shape, before)
    scaled = _insert(node, "Div", [product, divisor], new.shape, before)
    return _insert(node, "Where", [positive, scaled, value], new.shape, before)


def _constant(node: ir.Node, name: str, values: NDArray[np.generic]) -> ir.Value:
    assert isinstance(node.graph, ir.Graph)
    return add_constant(node.graph, name, values)


def _insert(
    node: ir.Node, op_type: str, inputs: Sequence[ir.Value], shape: Sequence[int], before: bool
) -> ir.Value:
    """A new node right before the one that reads the list, or after the one that makes it.

    Targets ask for the type and the shape of its output.
    """
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    name = unique_name(graph, f"{node.outputs[0].name}/{op_type.lower()}")
    kind = ir.DataType.BOOL if op_type == "Greater" else ir.DataType.INT64
    output = ir.Value(name=name, type=ir.TensorType(kind), shape=ir.Shape(shape))
    new = ir.node(op_type, inputs, name=name, outputs=[output])
    if before:
        graph.insert_before(node, new)
    else:
        made = {p for v in inputs if (p := v.producer()) is not None} | {node}
        graph.insert_after(_last(graph, made), new)
    return new.outputs[0]


def _last(graph: ir.Graph, nodes: Collection[ir.Node]) -> ir.Node:
    return next(node for node in reversed(graph) if node in nodes)
