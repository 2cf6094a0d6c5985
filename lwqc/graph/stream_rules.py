"""What operators do to a residual stream in rotated coordinates, one rule each.

A rule gives the frame of those outputs that carry the stream; None says that none may. It refuses,
with the reason, what would come out differently in other coordinates. Outputs without the axis of
the stream, which a rule lets pass, are the same in all coordinates.
"""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir

from lwqc.graph.stream_layers import linear
from lwqc.graph.stream_walk import LINEAR, Frame, Frames, Rules, Walk, refuse
from lwqc.model.weights import stored_tensor


def move(walk: Walk, node: ir.Node, frames: Frames) -> Frame | None:
    """The same for every channel, along other axes."""
    if any(frames[1:]):
        refuse(node, "is controlled by values of the stream")
    data = frames[0]
    output = node.outputs[0]
    if data is None or (output.dtype is not None and not output.dtype.is_floating_point()):
        refuse(node, "does not treat all directions of the stream alike")
    if node.op_type == "Dropout" and len(node.inputs) > 2:
        refuse(node, "may drop channels one by one")
    return replace(data, use=None)


def shape(walk: Walk, node: ir.Node, frames: Frames) -> None:
    """Looks at sizes only."""


def gather(walk: Walk, node: ir.Node, frames: Frames) -> Frame | None:
    """An embedding, or a choice along another axis."""
    data = frames[0]
    if data is None or any(frames[1:]):
        refuse(node, "is controlled by values of the stream")
    if data.kind == "constant" and data.source is not None:
        if data.use is None:
            walk.tables.setdefault(data.source, []).append(node)
        return walk.settle(data, node)
    return data


def concat(walk: Walk, node: ir.Node, frames: Frames) -> Frame | None:
    """Along another axis."""
    if any(f is None for f in frames):
        refuse(node, "joins the stream with something else")
    return _join(walk, node, frames)


def _join(walk: Walk, node: ir.Node, frames: Frames) -> Frame:
    present = [f for f in frames if f is not None]
    if len({f.affine for f in present}) == 1 and all(f.kind == "state" for f in present):
        return Frame("state", 0, present[0].affine, centred=all(f.centred for f in present))
    pure = [walk.pure(f, node) for f in present]
    return Frame("state", 0, centred=all(f.centred for f in pure))


def add(walk: Walk, node: ir.Node, frames: Frames) -> Frame | None:
    """Of streams, a constant in the stream, or the bias of a norm."""
    if any(f is None for f in frames):
        refuse(node, "adds the same number to all channels of the stream")
    present = [f for f in frames if f is not None]
    stored = [i for i, v in enumerate(node.inputs) if stored_tensor(v) is not None]
    if len(present) == 2 and len(stored) == 1 and node.op_type != "Sub":
        state = present[1 - stored[0]]
        if state.kind == "state" and (state.centred or state.affine):
            return walk.with_affine(state, "bias", node, stored[0])
    pure = [walk.pure(f, node) for f in present]
    parts = tuple(p for f in pure for p in f.parts) if all(f.parts for f in pure) else ()
    return Frame("state", 0, centred=all(f.centred for f in pure), parts=parts)


def sub(walk: Walk, node: ir.Node, frames: Frames) -> Frame | None:
    """Of streams, or of a stream's own mean."""
    if node in walk.subtractions:
        assert frames[0] is not None
        return Frame("state", 0, centred=True)
    return add(walk, node, frames)


def mul(walk: Walk, node: ir.Node, frames: Frames) -> Frame | None:
    """A square, a number for all channels, or the gain of a norm."""
    if all(frames):
        a, b = frames
        assert a is not None
        assert b is not None
        if node.inputs[0] is node.inputs[1]:
            return _squared(walk, node, a)
        constants = [i for i in (0, 1) if stored_tensor(node.inputs[i]) is not None]
        if len(constants) == 1:
            state = walk.settle((a, b)[1 - constants[0]], node)
            return walk.with_affine(state, "gain", node, constants[0])
        refuse(node, "multiplies channels of the stream one by one")
    return walk.unbiased(next(f for f in frames if f is not None), node)


def div(walk: Walk, node: ir.Node, frames: Frames) -> Frame | None:
    """By a number for all channels."""
    if frames[0] is None or frames[1] is not None:
        refuse(node, "divides by channels of the stream")
    return walk.unbiased(frames[0], node)


def negative(walk: Walk, node: ir.Node, frames: Frames) -> Frame | None:
    """The same as times -1."""
    return walk.unbiased(frames[0], node) if frames[0] is not None else None


def power(walk: Walk, node: ir.Node, frames: Frames) -> Frame | None:
    """A square."""
    exponent = stored_tensor(node.inputs[1])
    if frames[0] is None or exponent is None or exponent.size != 1 or exponent.numpy() != 2:
        refuse(node, "takes a power of channels one by one")
    return _squared(walk, node, frames[0])


def _squared(walk: Walk, node: ir.Node, frame: Frame) -> Frame:
    frame = walk.pure(frame, node)
    if not frame.centred:
        walk.needs_mean.append(node)
    return Frame("square", frame.axis)


def reduce(walk: Walk, node: ir.Node, frames: Frames) -> Frame | None:
    """A mean or sum over other axes, of squares over the channels, or a mean to subtract."""
    frame = frames[0]
    if frame is None:
        refuse(node, "is controlled by values of the stream")
    if walk.axis_of(walk.analysis.dims.get(node.outputs[0], ()), node) is not None:
        sums = node.op_type == "ReduceSum"
        return walk.unbiased(frame, node) if sums else walk.settle(frame, node)
    if frame.kind == "square":
        if node.op_type != "ReduceMean":
            walk.sums.append(node)
        return None
    walk.pure(frame, node)
    mean, data = node.outputs[0], node.inputs[0]
    uses = list(mean.uses())
    subtracted = all(
        u.node.op_type == "Sub" and u.idx == 1 and u.node.inputs[0] is data for u in uses
    )
    if node.op_type != "ReduceMean" or mean.is_graph_output() or not subtracted:
        refuse(node, "reduces the channels of the stream")
    if _several_axes(walk, node):
        refuse(node, "normalises over more than the channels")
    walk.subtractions += [u.node for u in uses]
    return None


def _several_axes(walk: Walk, node: ir.Node) -> bool:
    """Whether a reduction over the channels drops axes or runs over another one too."""
    before, after = walk.analysis.operand(node, 0), walk.analysis.dims.get(node.outputs[0])
    if before is None or after is None or len(before) != len(after):
        return True
    return sum(d.size != 1 for d in before) - sum(d.size != 1 for d in after) != 1


def energy(walk: Walk, node: ir.Node, frames: Frames) -> None:
    """The length of the vector: the same after a rotation."""
    if frames[0] is None:
        refuse(node, "is controlled by values of the stream")
    if walk.axis_of(walk.analysis.dims.get(node.outputs[0], ()), node) is not None:
        refuse(node, "squares channels one by one")
    frame = walk.pure(frames[0], node)
    walk.sums.append(node)
    if not frame.centred:
        walk.needs_mean.append(node)


def rms_norm(walk: Walk, node: ir.Node, frames: Frames) -> Frame | None:
    """By the root mean square; the gain is folded."""
    frame = _normalised(walk, node, frames)
    if not frame.centred:
        walk.needs_mean.append(node)
    return walk.with_affine(frame, "gain", node, 1) if len(node.inputs) > 1 else frame


def layer_norm(walk: Walk, node: ir.Node, frames: Frames) -> Frame | None:
    """With the mean; gain and bias are folded, the node is replaced."""
    frame = _normalised(walk, node, frames)
    walk.layer_norms.append(node)
    frame = replace(frame, centred=True)
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        frame = walk.with_affine(frame, "gain", node, 1)
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        frame = walk.with_affine(frame, "bias", node, 2)
    return frame


def _normalised(walk: Walk, node: ir.Node, frames: Frames) -> Frame:
    if frames[0] is None:
        refuse(node, "normalises something else by the stream")
    dims = walk.analysis.operand(node, 0) or []
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else -1
    if axis % len(dims) != len(dims) - 1 or frames[0].axis != len(dims) - 1:
        refuse(node, "normalises over more than the channels")
    if any(o.uses() or o.is_graph_output() for o in node.outputs[1:]):
        refuse(node, "also gives the mean or the deviation")
    return replace(walk.pure(frames[0], node), parts=())


_MOVES = (
    "Identity Cast Dropout Transpose Reshape Flatten Squeeze Unsqueeze Slice Split Expand GatherND"
)

RULES: Rules = {
    **{("", op): move for op in _MOVES.split()},
    ("", "Shape"): shape,
    ("", "Size"): shape,
    ("", "Gather"): gather,
    ("", "Concat"): concat,
    ("", "Add"): add,
    ("", "Sum"): add,
    ("", "Sub"): sub,
    ("", "Mul"): mul,
    ("", "Div"): div,
    ("", "Neg"): negative,
    ("", "Pow"): power,
    ("", "ReduceMean"): reduce,
    ("", "ReduceSum"): reduce,
    ("", "GlobalAveragePool"): reduce,
    ("", "ReduceL2"): energy,
    ("", "ReduceSumSquare"): energy,
    ("", "RMSNormalization"): rms_norm,
    ("", "SimplifiedLayerNormalization"): rms_norm,
    ("", "LayerNormalization"): layer_norm,
    **dict.fromkeys(LINEAR, linear),
}
