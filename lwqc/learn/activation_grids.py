"""Which grids of activations are fitted: their scales, and zero points by rounding.

As LSQ and LSQ+ do (arXiv 1902.08153, 2004.09576): slopes go straight through rounding, and values
beyond the range move it. What is fitted of a scale is the share of what it was; all scales that
one tensor's codes are written and read with get the same share.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from lwqc.learn.building import operation_of
from lwqc.learn.functions.codes import RANGES
from lwqc.learn.weights import FLOATS, Uses, behind, moves, unmoved
from lwqc.model.weights import static_shape, stored_tensor

OTHER_GRID = "its codes are read on another grid too"
OTHER_READER = "something else reads it too"
FROM_OUTSIDE = "its codes enter or leave the model"


@dataclass(frozen=True)
class Reading:
    """Codes of a tensor at one node. codes: as they were before they were moved."""

    node: ir.Node
    codes: ir.Value
    scale: ir.Value
    zero: ir.Value | None
    writes: bool


@dataclass
class LearnedGrid:
    """scales: each once, that of the writer first. zeros: those that are fitted."""

    scales: list[ir.Value] = field(default_factory=list)
    zeros: list[ir.Value] = field(default_factory=list)


def activation_grids(
    model: ir.Model, uses: Uses, others: Collection[ir.Value]
) -> tuple[list[LearnedGrid], dict[ir.Value, str]]:
    """Grids that are fitted, and why other stored scales of activations are not.

    others: scales that are fitted anyway, or follow those that are. A zero point stays where it is
    at an end of its range, as behind Relu, or 0 among codes with a sign: kernels depend on both.
    """
    readings = [r for r in _readings(model) if r.scale not in others]
    found, refused = list[LearnedGrid](), dict[ir.Value, str]()
    for group in _groups(readings):
        if not any(r.writes and _moving(r, uses) for r in group):
            continue
        group.sort(key=lambda r: not r.writes)
        scales = list(dict.fromkeys(r.scale for r in group))
        reason = _why_not(group, scales, uses)
        if reason:
            refused |= dict.fromkeys(scales, reason)
        else:
            found.append(LearnedGrid(scales, _free_zeros(group, uses)))
    return found, refused


def _readings(model: ir.Model) -> Iterator[Reading]:
    """Those of one scale for the whole tensor."""
    for node in model.graph:
        operation = operation_of(node)
        for codes, scale, zero in () if operation is None else operation.grids:
            value = _input(node, scale)
            tensor = stored_tensor(value)
            if value is None or tensor is None or tensor.dtype not in FLOATS or tensor.size != 1:
                continue
            origin = node.outputs[0] if codes is None else unmoved(_input(node, codes))
            if origin is not None:
                yield Reading(node, origin, value, _input(node, zero), codes is None)


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _groups(readings: Sequence[Reading]) -> list[list[Reading]]:
    """Those of the same codes, of the same scale, or of scales that have to stay the same."""
    leader: dict[ir.Value, ir.Value] = {}

    def root(value: ir.Value) -> ir.Value:
        while (above := leader.setdefault(value, value)) is not value:
            value = above
        return value

    for reading in readings:
        leader[root(reading.codes)] = root(reading.scale)
    by_writer = {r.node: r for r in readings if r.writes}
    for reading in readings:
        for writer in _same_grid(reading, by_writer):
            leader[root(writer.scale)] = root(reading.scale)
    groups: dict[ir.Value, list[Reading]] = {}
    for reading in readings:
        groups.setdefault(root(reading.scale), []).append(reading)
    return list(groups.values())


def _same_grid(reading: Reading, by_writer: dict[ir.Node, Reading]) -> Iterator[Reading]:
    """Writers of what one node makes of decoded codes, on the same numbers.

    Around a pool or a movement kernels for codes depend on it.
    """
    if reading.writes or reading.node.op_type != "DequantizeLinear":
        return
    for use in reading.node.outputs[0].uses():
        for after in use.node.outputs[0].uses() if use.node.outputs else ():
            writer = by_writer.get(after.node)
            if writer is not None and after.idx == 0 and _equal(reading, writer):
                yield writer


def _equal(one: Reading, other: Reading) -> bool:
    return _number(one.scale) == _number(other.scale) and _zero(one) == _zero(other)


def _number(value: ir.Value) -> float:
    tensor = stored_tensor(value)
    assert tensor is not None
    return float(tensor.numpy().reshape(-1)[0])


def _zero(reading: Reading) -> int | None:
    """None: it is not stored as one number."""
    if reading.zero is None:
        return 0
    tensor = stored_tensor(reading.zero)
    if tensor is None or tensor.size != 1 or tensor.dtype not in RANGES:
        return None
    return int(tensor.numpy().reshape(-1)[0])


def _moving(reading: Reading, uses: Uses) -> bool:
    """Whether what it writes depends on inputs of the model."""
    return any(v in uses.moving for v in reading.node.inputs if v is not None)


def _why_not(group: Sequence[Reading], scales: Sequence[ir.Value], uses: Uses) -> str:
    """Why the scales of a group stay, or ""."""
    for scale in scales:
        if len(uses.readers.get(scale, ())) != sum(r.scale is scale for r in group):
            return OTHER_READER
    zeros: dict[ir.Value, int | None] = {}
    for reading in group:
        zero = _zero(reading)
        if zero is None or zeros.setdefault(reading.codes, zero) != zero:
            return OTHER_GRID
    written = {r.codes for r in group if r.writes}
    for codes in zeros.keys() - written:
        if stored_tensor(codes) is None:
            return FROM_OUTSIDE
    readers = {r.node for r in group}
    for codes in written:
        later = [codes, *(n.outputs[0] for n, i in behind(codes, uses) if moves(n, i))]
        if any(value.is_graph_output() for value in later):
            return FROM_OUTSIDE
        if any(n not in readers for n, i in behind(codes, uses) if not moves(n, i)):
            return OTHER_READER
    return ""


def _free_zeros(group: Sequence[Reading], uses: Uses) -> list[ir.Value]:
    """The zero points of a group, if they may move together."""
    zeros = list(dict.fromkeys(r.zero for r in group))
    stored = [stored_tensor(zero) for zero in zeros]
    kinds = {tensor.dtype for tensor in stored if tensor is not None}
    numbers = {_zero(reading) for reading in group}
    if len(kinds) != 1 or len(numbers) != 1 or any(zero is None for zero in zeros):
        return []
    (kind,), (number,) = kinds, numbers
    low, high = RANGES[kind]
    if number is None or number in (low, high) or (low < 0 and number == 0):
        return []
    found = [zero for zero in zeros if zero is not None]
    read = sum(len(uses.readers.get(zero, ())) for zero in found)
    shapes = {static_shape(tensor) for tensor in stored if tensor is not None}
    return found if read == len(group) and len(shapes) == 1 else []
