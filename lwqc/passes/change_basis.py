"""Puts residual streams into other coordinates; the outputs stay."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.errors import InputError
from lwqc.graph.axis_analysis import AxisAnalysis
from lwqc.graph.rotatable import Streams
from lwqc.graph.stream import Affine, Reading, Stream, Turn
from lwqc.model.edit import (
    add_constant,
    float_type,
    insert_before,
    lazy_like,
    replace_node,
    replace_stored,
)
from lwqc.model.weights import static_shape, stored_tensor
from lwqc.passes.node_chain import NodeChain, like
from lwqc.passes.stream_bias import composed, fold_bias, own_copy
from lwqc.quant.basis import Basis

Vector = NDArray[np.float64]
_HALVES = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})


def change_basis(analysis: AxisAnalysis, bases: Mapping[Stream, Basis]) -> None:
    """Put streams that were found in an analysed model into other coordinates, in place.

    Weights, embeddings and biases are stored in the new coordinates under their names. Gains and
    biases of norms go into the layers that read them. Layer norms become norms by the root mean
    square, and all that is added to the stream loses its mean. Where an embedding is also the
    weight of a layer behind a gain, a matrix [D, D] is added in front of that layer.
    """
    chosen = [_Changed(analysis, stream, basis) for stream, basis in bases.items()]
    # Biases first: they are made of weights in the old coordinates, then turned like any other.
    for changed in chosen:
        for reading in changed.stream.readings:
            bias = fold_bias(analysis.graph, reading)
            if bias is not None:
                _written_too(bias, reading, chosen)
    for changed in chosen:
        changed.rewrite()


def named_streams(found: Streams, names: Iterable[str]) -> list[Stream]:
    """The streams of these groups, in this order.

    Raises InputError with the reason for an unknown group or a stream that cannot be turned.
    """
    streams = {stream.group.name: stream for stream in found.streams}
    reasons = {fixed.name: fixed.reason for fixed in found.fixed}
    for name in names:
        if name not in streams:
            reason = reasons.get(name, "the model has no such stream; see lwqc inspect --groups")
            raise InputError(f"{name}: cannot be rotated: {reason}")
    return [streams[name] for name in names]


def _written_too(bias: ir.Value, reading: Reading, chosen: Sequence[_Changed]) -> None:
    """A new bias is turned as the outputs of its layer's weight are."""
    operand = reading.operand
    written = operand.stored_axis(operand.out_axis)
    for changed in chosen:
        for turn in changed.stream.turns:
            if turn.value is operand.weight.source and turn.axis == written:
                changed.added.append((bias, turn))


class _Changed:
    """One stream and its new coordinates."""

    def __init__(self, analysis: AxisAnalysis, stream: Stream, basis: Basis) -> None:
        self.graph = analysis.graph
        self.analysis = analysis
        self.stream = stream
        self.basis = basis
        # Read before they are neutralised.
        self.vectors = {a: a.vector() for a in stream.affine}
        self.added: list[tuple[ir.Value, Turn]] = []  # new biases that are part of the stream
        self.neutral = cache(self._neutral)  # one constant for all

    def rewrite(self) -> None:
        for reading in self.stream.tied:
            self.bridge(reading)
        for reading in self.stream.shared:
            self.unscale(reading)
        for node in self.stream.uncentred:
            self.centre(node)
        self.turn()
        for affine in self.stream.affine:
            if affine.node not in self.stream.layer_norms:
                self.neutralise(affine)
        for node in self.stream.subtractions:
            _bypass(node, 0)
        for node in self.stream.layer_norms:
            self.replace_layer_norm(node)

    def turned(self, array: NDArray[np.generic], turn: Turn, axis: int) -> Vector:
        """The part of the stream along an axis in the new coordinates."""
        values = np.moveaxis(array.astype(np.float64), axis, -1)
        for gain in turn.gain:
            values = values * self.vectors[gain]
        if turn.centre:
            values = values - values.mean(axis=-1, keepdims=True)
        values = self.read(values) if turn.reads else self.basis.scale * self.basis.apply(values)
        return np.moveaxis(values, -1, axis)

    def read(self, values: Vector, axis: int = -1) -> Vector:
        """What a layer that reads the stream multiplies it with, in the new coordinates."""
        return self.basis.apply(values, axis) / self.basis.scale

    def turn(self) -> None:
        """Rotate what is stored; readers of one tensor share the result where all turn it."""
        separate: dict[ir.Value, list[Turn]] = {}
        for turn in self.stream.turns:
            if turn.use is None:
                self.turn_stored(turn.value, turn)
                continue
            value = turn.use.node.inputs[turn.use.index]
            assert value is not None
            separate.setdefault(value, []).append(turn)
        for value, turns in separate.items():
            same = all(t.gain == turns[0].gain for t in turns)
            if same and len(turns) == len(value.uses()):
                self.turn_stored(value, turns[0])
                continue
            for turn in turns:
                assert turn.use is not None
                self.turn_stored(own_copy(self.graph, turn.use.node, turn.use.index), turn)
        for value, turn in self.added:
            self.turn_stored(value, replace(turn, value=value, axis=0, use=None))

    def turn_stored(self, value: ir.Value, turn: Turn) -> None:
        tensor = stored_tensor(value)
        assert tensor is not None
        replace_stored(
            value,
            lazy_like(tensor, tensor.name, lambda: self.turned(tensor.numpy(), turn, turn.axis)),
        )

    def bridge(self, reading: Reading) -> None:
        """Put the constants behind a norm into a matrix: Qᵀ diag(gain) Q / s², and bias Q / s.

        The weight behind it is the embedding's, s · TQ.
        """
        node, name = reading.operand.node, reading.operand.weight.name
        gain, bias = composed(reading.affine, self.vectors)
        data = node.inputs[0]
        dtype = float_type(data).numpy()
        matrix = self.read(self.read(np.diag(gain), 0), 1)
        stored = add_constant(self.graph, f"{name}/rotation", matrix.astype(dtype))
        (value,) = insert_before(node, "MatMul", [data, stored], [f"{node.outputs[0].name}/gain"])
        like(value, data)
        if bias.any():
            turned = self.read(bias).astype(dtype)
            constant = add_constant(self.graph, f"{name}/rotated_bias", turned)
            name = f"{node.outputs[0].name}/norm_bias"
            (value,) = insert_before(node, "Add", [value, constant], [name])
            like(value, data)
        node.replace_input_with(0, value)

    def unscale(self, reading: Reading) -> None:
        """Divide by s² in front of a layer whose weight s · TQ is also written into the stream."""
        if self.basis.scale == 1:
            return
        node, name = reading.operand.node, reading.operand.weight.name
        data = node.inputs[0]
        factor = np.asarray(self.basis.scale**-2, float_type(data).numpy())
        stored = add_constant(self.graph, f"{name}/unscale", factor)
        (value,) = insert_before(node, "Mul", [data, stored], [f"{node.outputs[0].name}/unscaled"])
        like(value, data)
        node.replace_input_with(0, value)

    def centre(self, node: ir.Node) -> None:
        """Subtract the mean over the channels where it is one direction of the new coordinates."""
        size, output = self.stream.group.size, node.outputs[0]
        direction = self.basis.apply(np.full(size, size**-0.5)).astype(float_type(output).numpy())
        stored = add_constant(self.graph, f"{output.name}/mean_direction", direction)
        readers = list(output.uses())
        after = NodeChain(node, self.analysis.opset, before=False)
        along = after.op("Mul", [output, stored], "along")
        mean = after.op("Mul", [after.reduce("ReduceSum", along, "sum"), stored], "mean")
        centred = after.op("Sub", [output, mean], "centred")
        for use in readers:
            use.node.replace_input_with(use.idx, centred)
        like(centred, output)

    def neutralise(self, affine: Affine) -> None:
        """A gain becomes 1, which keeps the pattern that runtimes fuse; a bias goes."""
        if affine.kind == "bias":
            _bypass(affine.node, 1 - affine.operand)
            return
        value = affine.node.inputs[affine.operand]
        tensor = stored_tensor(value)
        assert tensor is not None
        ones = self.neutral(static_shape(tensor), tensor.dtype)
        affine.node.replace_input_with(affine.operand, ones)

    def _neutral(self, shape: tuple[int, ...], dtype: ir.DataType) -> ir.Value:
        ones = np.ones(shape, dtype.numpy())
        return add_constant(self.graph, f"{self.stream.group.name}/ones", ones)

    def replace_layer_norm(self, node: ir.Node) -> None:
        """x / sqrt(mean(x²) + epsilon) · 1, as onnxruntime fuses it; x has no mean any more."""
        data, output = node.inputs[0], node.outputs[0]
        dtype = float_type(data)
        computed = ir.DataType.FLOAT if dtype in _HALVES else dtype
        before = NodeChain(node, self.analysis.opset, before=True)
        x = data
        if computed != dtype:
            x = before.op("Cast", [x], "wide", {"to": int(computed)})
        epsilon = node.attributes["epsilon"].as_float() if "epsilon" in node.attributes else 1e-5
        number = computed.numpy().type
        two = add_constant(self.graph, f"{output.name}/two", number(2))
        least = add_constant(self.graph, f"{output.name}/epsilon", number(epsilon))
        mean = before.reduce("ReduceMean", before.op("Pow", [x, two], "square"), "mean")
        deviation = before.op("Sqrt", [before.op("Add", [mean, least], "energy")], "deviation")
        value = before.op("Div", [x, deviation], "normalised")
        if computed != dtype:
            value = before.op("Cast", [value], "narrow", {"to": int(dtype)})
        ones = self.neutral((self.stream.group.size,), dtype)
        replace_node(node, before.op("Mul", [value, ones], "scaled"))


def _bypass(node: ir.Node, operand: int) -> None:
    """Let an operand take the place of the node's result."""
    value = node.inputs[operand]
    assert value is not None
    node.outputs[0].replace_all_uses_with(value)
