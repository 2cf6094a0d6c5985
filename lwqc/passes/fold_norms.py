"""Moves gains and biases of norms into the linear layers that read them; the outputs stay."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.graph.consumers import bias_operand, node_name
from lwqc.graph.linear_operand import Operand, linear_operand
from lwqc.graph.operands import pads
from lwqc.graph.scalable import Consumer, Port, Span, Unscalable, find_spans
from lwqc.graph.scale_rules import MOVES
from lwqc.model.edit import (
    add_constant,
    float_type,
    lazy_like,
    replace_stored,
)
from lwqc.model.names import unique_name
from lwqc.model.weights import static_shape, stored_tensor
from lwqc.passes.base import Pass
from lwqc.passes.context import Context
from lwqc.passes.migrate_scales import Factor, multiply, own_operand, own_source

Vector = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Foldable:
    """A norm whose gain and bias can go. output: what the linear layers read."""

    output: ir.Value
    gain: Port
    bias: Port | None
    readers: tuple[Consumer, ...]


@dataclass(frozen=True)
class FoldableNorms:
    """Norms that can be folded, in graph order, and gains that cannot, with the reason."""

    norms: tuple[Foldable, ...]
    skipped: tuple[Unscalable, ...]


@dataclass(frozen=True)
class FoldNorms(Pass):
    """Give norms the gain 1 and the bias 0.

    Matches: a norm, or a product with a stored vector as exporters write the end of one, maybe
        with a stored vector added, whose readers are all linear layers, maybe behind reshapes and
        the like.
    Rewrites to: weights times the gain, layers' biases plus weights times the norm's bias, under
        the same names. The neutral gain and bias stay, so that runtimes still fuse the norm. A
        MatMul without a bias gets an Add.
    Refuses: other norms, with the reason.

    only: where given, only norms whose gain is applied by a node whose first output has one of
        these names.
    """

    only: tuple[str, ...] = ()

    def rewrite(self, model: ir.Model, ctx: Context) -> int:
        """Fold all norms that can be folded."""
        found = find_foldable_norms(model)
        for left in found.skipped:
            ctx.refuse(left.name, left.reason)
        norms = [norm for norm in found.norms if self._may(norm) and not _is_neutral(norm)]
        for norm in norms:
            _fold(model.graph, norm)
        return len(norms)

    def _may(self, norm: Foldable) -> bool:
        return not self.only or norm.gain.node.outputs[0].name in self.only


def _is_neutral(norm: Foldable) -> bool:
    """Whether a norm has been folded already."""
    without_bias = norm.bias is None or not _vector(norm.bias).any()
    return without_bias and bool((_vector(norm.gain) == 1).all())


def find_foldable_norms(model: ir.Model) -> FoldableNorms:
    """Which norms can be folded, and why not the others; the model is not changed."""
    found = find_spans(model)
    norms: list[Foldable] = []
    skipped = [s for s in found.skipped if s.kind == "gain"]
    for span in found.spans:
        answer = _foldable(span)
        if isinstance(answer, Foldable):
            norms.append(answer)
        else:
            skipped += [
                Unscalable(gain.node.outputs[0].name or "", gain.node.op_type, "gain", answer)
                for gain in span.producers
                if gain.kind == "gain"
            ]
    return FoldableNorms(tuple(norms), tuple(skipped))


def _foldable(span: Span) -> Foldable | str:
    ports = {port.kind: port for port in span.producers}
    gain, bias = ports.get("gain"), ports.get("bias")
    if gain is None or len(ports) < len(span.producers) or "weight" in ports:
        return "its result is combined with other tensors"
    last = bias if bias is not None else gain
    output = last.node.outputs[0]
    for tensor in span.tensors:
        producer = tensor.producer()
        made = tensor in (output, gain.node.outputs[0])
        if producer is not None and not made and producer.op_type not in MOVES:
            return f"is read by {producer.op_type} {node_name(producer)}, no linear layer"
    reasons = (_unfit(consumer, output, biased=bias is not None) for consumer in span.consumers)
    return next((r for r in reasons if r), Foldable(output, gain, bias, span.consumers))


def _unfit(reader: Consumer, output: ir.Value, *, biased: bool) -> str | None:
    """Why a layer cannot take the norm's gain and bias."""
    name = f"{reader.node.op_type} {node_name(reader.node)}"
    if _before_moves(reader.activation) is not output:
        return f"{name} reads it without the bias"
    if (reader.features < 0).any():
        return f"{name} reads it with channels that are not the norm's"
    if not biased:
        return None
    if pads(reader.node):
        return f"{name} pads with zeros, which the norm's bias would change"
    operand = linear_operand(reader.node)
    assert isinstance(operand, Operand)
    has_bias = len(reader.node.inputs) > 2 and reader.node.inputs[2] is not None
    if has_bias and bias_operand(reader.node, operand.out) is None:
        return f"the bias of {name} is not stored per channel"
    return None


def _before_moves(value: ir.Value) -> ir.Value:
    producer = value.producer()
    while producer is not None and producer.op_type in MOVES:
        source = producer.inputs[0]
        assert source is not None
        value, producer = source, source.producer()
    return value


def _fold(graph: ir.Graph, norm: Foldable) -> None:
    gain = _vector(norm.gain)
    if norm.bias is not None:
        bias = _vector(norm.bias)
        for reader in norm.readers:
            _add_bias(graph, reader, bias)
        _fill(graph, norm.bias, 0.0)
    multiply(graph, [Factor(reader, gain) for reader in norm.readers])
    _fill(graph, norm.gain, 1.0)


def _vector(port: Port) -> Vector:
    """Numbers of a stored vector by channel of the span."""
    channels = port.channels.ravel()
    result = np.zeros(channels.size)
    result[channels] = port.weight.tensor.numpy().ravel()
    return result


def _fill(graph: ir.Graph, port: Port, number: float) -> None:
    source = own_source(graph, port)
    tensor = stored_tensor(source)
    assert tensor is not None
    shape = static_shape(tensor)
    replace_stored(source, lazy_like(tensor, tensor.name, lambda: np.full(shape, number)))


def _add_bias(graph: ir.Graph, reader: Consumer, bias: Vector) -> None:
    """Add W · bias, W as it is before the gain, to the layer's bias."""
    operand = linear_operand(reader.node)
    assert isinstance(operand, Operand)
    weight, axis = operand.weight.tensor, operand.stored_axis(operand.out_axis)

    def shift() -> Vector:
        products: Vector = weight.numpy().astype(np.float64) * bias[reader.channels]
        result: Vector = products.sum(axis=tuple(a for a in range(products.ndim) if a != axis))
        return result

    slot = bias_operand(reader.node, operand.out)
    value = own_operand(graph, *slot) if slot is not None else _new_bias(graph, operand)
    tensor = stored_tensor(value)
    assert tensor is not None
    shape = static_shape(tensor)
    replace_stored(
        value, lazy_like(tensor, tensor.name, lambda: tensor.numpy() + shift().reshape(shape))
    )


def _new_bias(graph: ir.Graph, operand: Operand) -> ir.Value:
    """Zeros that the layer adds to its output, in an Add behind a MatMul."""
    node, output = operand.node, operand.node.outputs[0]
    zeros = np.zeros(operand.out, float_type(node.inputs[1]).numpy())
    bias = add_constant(graph, f"{operand.weight.name}/bias", zeros)
    if node.op_type != "MatMul":
        node.resize_inputs(3)
        node.replace_input_with(2, bias)
        return bias
    name = output.name or ""
    value = ir.Value(name=name, type=output.type, shape=output.shape)
    output.replace_all_uses_with(value, replace_graph_outputs=True)
    output.name = unique_name(graph, f"{name}/unbiased")
    add = ir.node("Add", [output, bias], outputs=[value], name=f"{name}/bias")
    graph.insert_after(node, add)
    return bias
