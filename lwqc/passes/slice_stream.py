"""Narrows residual streams to a few directions: less of every weight that reads or writes them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.errors import InputError
from lwqc.graph.branches import find_branches
from lwqc.graph.groups import Group, Groups, find_groups
from lwqc.graph.linear_operand import Operand
from lwqc.graph.rotatable import find_streams
from lwqc.graph.shapes import declared_shapes
from lwqc.graph.stream import Stream
from lwqc.graph.stream_walk import where
from lwqc.model.edit import Rewrite, add_initializer, float_type, insert_before, lazy_tensor
from lwqc.model.unused import RemoveUnused
from lwqc.passes.change_basis import change_basis, named_streams
from lwqc.passes.node_chain import like
from lwqc.passes.prune_channels import prune_channels
from lwqc.passes.stream_bias import own_copy
from lwqc.quant.basis import Orthogonal, Unchanged

Matrix = NDArray[np.float64]
States = Mapping[ir.Value, int]


@dataclass(frozen=True)
class Part:
    """A stretch of a stream that has one basis: all of it, or up to the next addition.

    group: its channels in the prepared model. stream: the group of the whole stream before.
    size: D. layers: that read it; the shortcut itself only where there is no other. What a gain in
    a matrix [D, D] makes of it is not part of the stream.
    """

    group: str
    stream: str
    size: int
    layers: tuple[Operand, ...]


@dataclass(frozen=True, eq=False)
class Slice:
    """What becomes of a part: the first `width` columns of an orthogonal matrix [D, D] span it."""

    basis: Matrix
    width: int


def unsliceable(stream: Stream) -> str:
    """Why a stream that can be rotated cannot get narrower; "" where it can."""
    if not stream.sums:
        return ""
    return f"{where(stream.sums[0])} adds over the channels, so that their scale would show"


def prepare_slicing(model: ir.Model, streams: Mapping[str, bool]) -> list[Part]:
    """Give streams norms without constants and, on demand, a shortcut matrix at every addition.

    streams: group of a stream -> whether it stays one part. The model, which must be prepared for
    pruning, is rewritten in place and computes the same. Shortcut matrices [D, D] are the identity.

    Raises InputError with the reason for a group that is no such stream.
    """
    states = _untied(model, streams)
    groups = _groups(model)
    whole = [s for s in find_streams(groups).streams if _name(s, states) is not None]
    change_basis(groups.analysis, dict.fromkeys(whole, Unchanged()))
    RemoveUnused()(model)
    apart = {reading.operand.node for stream in whole for reading in stream.tied}
    for name, shared in streams.items():
        if not shared:
            apart |= set(_split(model.graph, groups, states[name]))
    return _parts(model, states, apart)


def _parts(model: ir.Model, states: Mapping[str, States], apart: Collection[ir.Node]) -> list[Part]:
    """Stretches of the streams that tensors carry, without the layers that are set apart."""
    found = find_streams(_groups(model))
    parts = [
        Part(stream.group.name, name, stream.group.size, _layers(stream, apart))
        for stream in found.streams
        if (name := _name(stream, states)) is not None
    ]
    lost = sorted(states.keys() - {part.stream for part in parts})
    if lost:
        reasons = "; ".join(f.reason for f in found.fixed)
        raise InputError(f"{lost[0]}: cannot be sliced once its norms are folded: {reasons}")
    return parts


class SliceStream(Rewrite):
    """Replace a stream x of D channels by √(d/D) · xQ, Q the first d columns of a basis (SliceGPT).

    slices: group of a part, see `prepare_slicing`, -> its slice.
    Matches: streams that `graph.rotatable` finds.
    Rewrites to: weights, embeddings and biases with d instead of D channels. The scale makes the
    mean of d squares what the mean of D was, so that norms and their epsilon stay as they are.
    Refuses: with InputError and the reason, an unknown group or a stream that cannot be rotated.
    """

    def __init__(self, slices: Mapping[str, Slice]) -> None:
        super().__init__()
        self._slices = dict(slices)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rotate, then drop the last channels."""
        if not self._slices:
            return ir.passes.PassResult(model, False)
        groups = _groups(model)
        streams = named_streams(find_streams(groups), self._slices)
        bases = zip(streams, map(_basis, self._slices.values()), strict=True)
        change_basis(groups.analysis, dict(bases))
        RemoveUnused()(model)
        groups = _groups(model)
        removed = {}
        for stream, part in zip(streams, self._slices.values(), strict=True):
            group = _group(groups, stream.states)
            removed[group.name] = range(part.width, group.size)
        prune_channels(groups, removed)
        RemoveUnused()(model)
        return ir.passes.PassResult(model, True)


def _basis(part: Slice) -> Orthogonal:
    return Orthogonal(part.basis, (part.width / len(part.basis)) ** 0.5)


def _groups(model: ir.Model) -> Groups:
    return find_groups(model, declared_shapes(model)[0])


def _untied(model: ir.Model, streams: Mapping[str, bool]) -> dict[str, States]:
    """The tensors that carry each stream, once its embeddings are untied."""
    states = {}
    for stream in named_streams(find_streams(_groups(model)), streams):
        name = stream.group.name
        if reason := unsliceable(stream):
            raise InputError(f"{name}: cannot be sliced: {reason}")
        _untie(model.graph, stream, streams[name])
        states[name] = stream.states
    return states


def _untie(graph: ir.Graph, stream: Stream, shared: bool) -> None:
    """Give layers that share an embedding a weight of their own where one would not do for both.

    With several bases it is read in other coordinates than it is written in; and rows that lose
    their mean when they are read are no longer what the layer needs.
    """
    for reading in () if shared and not stream.uncentred else (*stream.tied, *stream.shared):
        operand = reading.operand
        first = operand.weight.steps[0] if operand.weight.steps else operand.node
        own_copy(graph, first, 0 if operand.weight.steps else 1)


def _name(stream: Stream, states: Mapping[str, States]) -> str | None:
    """Which of the streams it was before, by the tensors that carry it."""
    found = (name for name, old in states.items() if not old.keys().isdisjoint(stream.states))
    return next(found, None)


def _split(graph: ir.Graph, groups: Groups, states: States) -> Iterator[ir.Node]:
    """Put the identity [D, D] into the shortcut of every residual addition of a stream.

    Gives the new nodes.
    """
    joins = dict.fromkeys((b.add, b.stream) for b in find_branches(graph).branches)
    for add, stream in joins:
        if stream in states and stream in add.inputs:
            dims = groups.analysis.dims[stream]
            value = _shortcut(graph, add, stream, states[stream], [d.size for d in dims])
            add.replace_input_with(list(add.inputs).index(stream), value)
            node = value.producer()
            assert node is not None
            yield node


def _shortcut(
    graph: ir.Graph, add: ir.Node, stream: ir.Value, axis: int, sizes: Sequence[int]
) -> ir.Value:
    """The stream times the identity: a product where its channels are last, else a convolution."""
    size, rank, name = sizes[axis], len(sizes), f"{add.outputs[0].name}/shortcut"
    last = axis == rank - 1
    if not last and axis != 1:
        raise InputError(
            f"{stream.name}: cannot be sliced: its channels are axis {axis} of {rank}; they must "
            "be last, or next to the batch"
        )
    shape = (size, size) if last else (size, size, *(1,) * (rank - 2))
    # Lazy: a deep model has many.
    identity = lazy_tensor(
        float_type(stream), shape, f"{name}_weight", lambda: np.eye(size).reshape(shape)
    )
    matrix = add_initializer(graph, identity)
    (value,) = insert_before(add, "MatMul" if last else "Conv", [stream, matrix], [name])
    like(value, stream)
    return value


def _layers(stream: Stream, apart: Collection[ir.Node]) -> tuple[Operand, ...]:
    return tuple(o for o in stream.layers if o.node not in apart) or stream.layers


def _group(groups: Groups, states: States) -> Group:
    """The group of the channels that tensors carry."""
    dims = groups.analysis.dims
    factor = next(dims[v][axis].find() for v, axis in states.items() if v in dims)
    return next(g for g in groups if g.factor.find() is factor)
