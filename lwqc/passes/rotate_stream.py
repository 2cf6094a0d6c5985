"""Rotates residual streams: outliers spread over all channels, the outputs stay."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from lwqc.errors import InputError
from lwqc.graph.axis_analysis import AxisAnalysis
from lwqc.graph.groups import Groups, find_groups
from lwqc.graph.linear_operand import Operand
from lwqc.graph.rotatable import find_streams
from lwqc.graph.shapes import declared_shapes
from lwqc.graph.stream_walk import Affine, Reading, Stream, Turn
from lwqc.graph.weights import static_shape, stored_tensor
from lwqc.passes.edit import (
    add_constant,
    add_initializer,
    float_type,
    insert_before,
    lazy_like,
    replace_node,
    replace_stored,
)
from lwqc.quant.rotation import Rotation

Vector = NDArray[np.float64]
_AXES_OPERAND_FROM = {"ReduceMean": 18, "ReduceSum": 13}  # opset; an attribute before
_HALVES = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})


class RotateStream(ir.passes.InPlacePass):
    """Replace a residual stream x by xQ, Q a randomised Hadamard matrix.

    seeds: name of the stream's group -> seed of its rotation.
    Matches: streams that `graph.rotatable` finds.
    Rewrites to: weights, embeddings and biases in the new coordinates, under their names. Gains and
    biases of norms go into the layers that read them. Layer norms become norms by the root mean
    square, and all that is added to the stream loses its mean. Where an embedding is also the
    weight of a layer behind a gain, a matrix [D, D] is added in front of that layer.
    Refuses: with InputError and the reason, an unknown group or a stream that cannot be rotated.
    """

    def __init__(self, seeds: Mapping[str, int]) -> None:
        super().__init__()
        self._seeds = dict(seeds)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Analyse the model as it is (see `prepare_pruning`) and rewrite it."""
        if not self._seeds:
            return ir.passes.PassResult(model, False)
        groups = find_groups(model, declared_shapes(model)[0])
        rotate_streams(groups, self._seeds)
        RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, True)


def rotate_streams(groups: Groups, seeds: Mapping[str, int]) -> None:
    """Rotate streams of the model that the groups were found in, in place; see `RotateStream`."""
    found = find_streams(groups)
    streams = {stream.group.name: stream for stream in found.streams}
    reasons = {fixed.name: fixed.reason for fixed in found.fixed}
    for name in seeds:
        if name not in streams:
            reason = reasons.get(name, "the model has no such stream; see lwqc inspect --groups")
            raise InputError(f"{name}: cannot be rotated: {reason}")
    chosen = [_Rotated(groups.analysis, streams[name], seed) for name, seed in seeds.items()]
    # Biases first: they are made of weights in the old coordinates, then turned like any other.
    for rotated in chosen:
        for reading in rotated.stream.readings:
            fold_bias(groups.analysis, reading, chosen)
    for rotated in chosen:
        rotated.rewrite()


class _Rotated:
    """One stream and its rotation."""

    def __init__(self, analysis: AxisAnalysis, stream: Stream, seed: int) -> None:
        self.graph = analysis.graph
        self.analysis = analysis
        self.stream = stream
        self.rotation = Rotation(stream.group.size, seed)
        # Read before they are neutralised.
        self.vectors = {a: a.vector() for a in stream.affine}
        self.added: list[tuple[ir.Value, Turn]] = []  # new biases that are part of the stream
        self.neutral = cache(self._neutral)  # one constant for all

    def rewrite(self) -> None:
        for reading in self.stream.tied:
            self.bridge(reading)
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
        return np.moveaxis(self.rotation.apply(values), -1, axis)

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
            self.turn_stored(value, Turn(value, 0, turn.gain, centre=turn.centre))

    def turn_stored(self, value: ir.Value, turn: Turn) -> None:
        tensor = stored_tensor(value)
        assert tensor is not None
        replace_stored(
            value,
            lazy_like(tensor, tensor.name, lambda: self.turned(tensor.numpy(), turn, turn.axis)),
        )

    def bridge(self, reading: Reading) -> None:
        """Put the constants behind a norm into a matrix: Qᵀ diag(gain) Q, and bias Q."""
        node, name = reading.operand.node, reading.operand.weight.name
        gain, bias = composed(reading.affine, self.vectors)
        data = node.inputs[0]
        dtype = float_type(data).numpy()
        matrix = self.rotation.apply(self.rotation.apply(np.diag(gain), 0), 1)
        stored = add_constant(self.graph, f"{name}/rotation", matrix.astype(dtype))
        (value,) = insert_before(node, "MatMul", [data, stored], [f"{node.outputs[0].name}/gain"])
        _like(value, data)
        if bias.any():
            turned = self.rotation.apply(bias).astype(dtype)
            constant = add_constant(self.graph, f"{name}/rotated_bias", turned)
            name = f"{node.outputs[0].name}/norm_bias"
            (value,) = insert_before(node, "Add", [value, constant], [name])
            _like(value, data)
        node.replace_input_with(0, value)

    def centre(self, node: ir.Node) -> None:
        """Subtract the mean over the channels where it is one direction of the new coordinates."""
        size, output = self.stream.group.size, node.outputs[0]
        direction = self.rotation.apply(np.full(size, size**-0.5)).astype(
            float_type(output).numpy()
        )
        stored = add_constant(self.graph, f"{output.name}/mean_direction", direction)
        readers = list(output.uses())
        after = _Ops(node, self.analysis.opset, before=False)
        along = after.op("Mul", [output, stored], "along")
        mean = after.op("Mul", [after.reduce("ReduceSum", along, "sum"), stored], "mean")
        centred = after.op("Sub", [output, mean], "centred")
        for use in readers:
            use.node.replace_input_with(use.idx, centred)
        _like(centred, output)

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
        before = _Ops(node, self.analysis.opset, before=True)
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


def composed(affine: Sequence[Affine], vectors: Mapping[Affine, Vector]) -> tuple[Vector, Vector]:
    """One gain and one bias [D] for several in a row."""
    gain = np.ones(len(vectors[affine[0]]))
    bias = np.zeros(len(gain))
    for item in affine:
        if item.kind == "gain":
            gain, bias = gain * vectors[item], bias * vectors[item]
        else:
            bias = bias + vectors[item]
    return gain, bias


def fold_bias(analysis: AxisAnalysis, reading: Reading, chosen: Sequence[_Rotated]) -> None:
    """Add what a norm's bias gives behind a linear layer to the layer's own bias, maybe a new one.

    The bias is in the coordinates from before any rotation.
    """
    vectors = {a: a.vector() for a in reading.affine}
    operand, weight = reading.operand, reading.operand.weight.tensor
    _, bias = composed(reading.affine, vectors)
    if not bias.any():
        return

    def shift() -> Vector:
        return operand.matrix(lambda _: weight.numpy()) @ bias

    slot = _bias_operand(operand)
    if slot is not None:
        node, index = slot
        value = node.inputs[index]
        assert value is not None
        if len(value.uses()) > 1 or value.is_graph_output():
            value = own_copy(analysis.graph, node, index)
        add_to_stored(value, shift)
        return
    new = _add_bias(analysis.graph, operand)
    add_to_stored(new, shift)
    written = operand.stored_axis(operand.out_axis)
    for rotated in chosen:
        for turn in rotated.stream.turns:
            if turn.value is operand.weight.source and turn.axis == written:
                rotated.added.append((new, turn))


def add_to_stored(value: ir.Value, shift: Callable[[], Vector]) -> None:
    """Add as many numbers as a stored tensor has."""
    tensor = stored_tensor(value)
    assert tensor is not None
    old = tensor
    replace_stored(
        value, lazy_like(old, old.name, lambda: old.numpy() + shift().reshape(old.numpy().shape))
    )


def _bias_operand(operand: Operand) -> tuple[ir.Node, int] | None:
    """The stored vector that is added to every output of a layer."""
    node = operand.node
    if len(node.inputs) > 2:
        return (node, 2) if _is_vector(node.inputs[2], operand.out) else None
    uses = list(node.outputs[0].uses())
    if node.op_type == "MatMul" and len(uses) == 1 and uses[0].node.op_type == "Add":
        add, index = uses[0].node, 1 - uses[0].idx
        if uses[0].node.domain == "" and _is_vector(add.inputs[index], operand.out):
            return add, index
    return None


def _is_vector(value: ir.Value | None, size: int) -> bool:
    """Whether it is stored, one number per channel; one of rank 2 must have no other reader."""
    tensor = stored_tensor(value)
    if tensor is None or value is None:
        return False
    shape = static_shape(tensor)
    alone = len(value.uses()) == 1 and not value.is_graph_output()
    return tensor.size == size and bool(shape) and shape[-1] == size and (alone or len(shape) == 1)


def _add_bias(graph: ir.Graph, operand: Operand) -> ir.Value:
    """A new bias of zeros."""
    node, output = operand.node, operand.node.outputs[0]
    dtype = float_type(node.inputs[0])
    bias = add_constant(graph, f"{operand.weight.name}/bias", np.zeros(operand.out, dtype.numpy()))
    if node.op_type == "Gemm" and (len(node.inputs) < 3 or node.inputs[2] is None):
        node.resize_inputs(3)
        node.replace_input_with(2, bias)
        return bias
    readers = list(output.uses())
    outputs = output.is_graph_output()
    add = ir.node("Add", [output, bias], name=f"{node.outputs[0].name}/bias")
    graph.insert_after(node, add)
    value = add.outputs[0]
    _like(value, output)
    for use in readers:
        use.node.replace_input_with(use.idx, value)
    if outputs:
        for index, given in enumerate(graph.outputs):
            if given is output:
                graph.outputs[index] = value
        value.name, output.name = output.name, f"{output.name}/unbiased"
    else:
        value.name = f"{output.name}/biased"
    return bias


class _Ops:
    """Adds nodes right in front of or behind one, named after its output."""

    def __init__(self, anchor: ir.Node, opset: int, *, before: bool) -> None:
        self._anchor, self._opset, self._before = anchor, opset, before
        self._prefix = anchor.outputs[0].name

    def op(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        name: str,
        attributes: dict[str, int | Sequence[int]] | None = None,
    ) -> ir.Value:
        name = f"{self._prefix}/{name}"
        node = ir.node(op_type, inputs, attributes, outputs=[ir.Value(name=name)], name=name)
        graph = self._anchor.graph
        assert graph is not None
        if self._before:
            graph.insert_before(self._anchor, node)
        else:
            graph.insert_after(self._anchor, node)
            self._anchor = node
        return node.outputs[0]

    def reduce(self, op_type: str, value: ir.Value, name: str) -> ir.Value:
        """Over the last axis, which stays with size 1."""
        if self._opset < _AXES_OPERAND_FROM[op_type]:
            return self.op(op_type, [value], name, {"axes": [-1], "keepdims": 1})
        graph = self._anchor.graph
        assert isinstance(graph, ir.Graph)
        axes = add_constant(graph, f"{self._prefix}/{name}_axes", np.array([-1]))
        return self.op(op_type, [value, axes], name, {"keepdims": 1})


def own_copy(graph: ir.Graph, node: ir.Node, index: int) -> ir.Value:
    """Give one reader its own copy of a stored tensor."""
    value = node.inputs[index]
    tensor = stored_tensor(value)
    assert tensor is not None
    assert value is not None
    copy = lazy_like(tensor, f"{value.name}/{node.name or node.outputs[0].name}", tensor.numpy)
    new = add_initializer(graph, copy)
    node.replace_input_with(index, new)
    return new


def _bypass(node: ir.Node, operand: int) -> None:
    """Let an operand take the place of the node's result."""
    value = node.inputs[operand]
    assert value is not None
    node.outputs[0].replace_all_uses_with(value)


def _like(value: ir.Value, other: ir.Value | None) -> None:
    if other is not None:
        value.shape, value.type = other.shape, other.type
