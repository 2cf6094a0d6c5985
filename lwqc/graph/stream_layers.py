"""What linear layers do to a residual stream in rotated coordinates; see `stream_rules`."""

from __future__ import annotations

import onnx_ir as ir

from lwqc.graph.axes import Factor
from lwqc.graph.linear_operand import Operand, linear_operand
from lwqc.graph.stream import Reading, Turn
from lwqc.graph.stream_walk import Frame, Frames, Walk, refuse
from lwqc.model.weights import stored_tensor


def linear(walk: Walk, node: ir.Node, frames: Frames) -> Frame | None:
    """Reads or writes the stream with a stored weight, or multiplies two tensors."""
    operand = linear_operand(node)
    if isinstance(operand, str):
        refuse(node, operand)
    if operand is None:
        return _product(walk, node, frames)
    dims = walk.analysis.operand(node, 1) or ()
    in_axis = 1 - operand.out_axis if node.op_type != "Conv" else 1
    reads = _has(walk, dims[in_axis], node)
    writes = _has(walk, dims[operand.out_axis], node)
    if any(_has(walk, d, node) for a, d in enumerate(dims) if a not in (in_axis, operand.out_axis)):
        refuse(node, "has channels of the stream along its kernel")
    if (reads or writes) and operand.groups > 1:
        refuse(node, "works group by group on channels of the stream")
    data, bias = frames[0], frames[2] if len(frames) > 2 else None
    if reads:
        _read(walk, node, operand, data)
    elif data is not None:
        if writes or node.op_type != "MatMul":
            refuse(node, "mixes channels of the stream with other indices")
        return walk.unbiased(data, node)
    if not writes:
        return None
    parts = [Turn(operand.weight.source, operand.stored_axis(operand.out_axis))]
    walk.turns += parts
    if bias is not None:
        parts += walk.pure(bias, node).parts
    elif len(node.inputs) > 2 and node.inputs[2] is not None:
        refuse(node, "adds the same number to all channels of the stream")
    return Frame("state", 0, parts=tuple(parts))


def _has(walk: Walk, dim: Factor, node: ir.Node) -> bool:
    return walk.axis_of([dim], node) is not None


def _read(walk: Walk, node: ir.Node, operand: Operand, data: Frame | None) -> None:
    if data is None:
        refuse(node, "reads channels of the stream from something else")
    data = walk.settle(data, node)
    if not data.centred:
        walk.needs_mean.append(node)
    if data.biased and node.op_type == "Conv":
        refuse(node, "pads the stream behind a norm's bias")
    in_axis = 1 if node.op_type == "Conv" else 1 - operand.out_axis
    gain = tuple(a for a in data.affine if a.kind == "gain")
    turn = Turn(operand.weight.source, operand.stored_axis(in_axis), gain, reads=True)
    walk.turns.append(turn)
    walk.readings.append(Reading(operand, data.affine, turn))


def _product(walk: Walk, node: ir.Node, frames: Frames) -> Frame | None:
    """Of two tensors that the graph computes: over the channels, or beside them."""
    if any(stored_tensor(v) is not None and f for v, f in zip(node.inputs, frames, strict=True)):
        refuse(node, "its weight is the left operand")
    a, b = frames[0], frames[1]
    output = walk.axis_of(walk.analysis.dims.get(node.outputs[0], ()), node)
    if a is not None and b is not None:
        if output is not None or node.op_type != "MatMul":
            refuse(node, "mixes channels of the stream with other indices")
        walk.sums.append(node)
        for frame in (walk.pure(a, node), walk.pure(b, node)):
            if not frame.centred:
                walk.needs_mean.append(node)
        return None
    if output is None or node.op_type != "MatMul":
        refuse(node, "mixes channels of the stream with other indices")
    found = a or b
    assert found is not None
    return walk.unbiased(found, node)
