"""Moves gains and biases of norms into the linear layers that read them; the outputs stay."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.graph.consumers import bias_operand, node_name
from lwqc.graph.linear_operand import Operand, linear_operand
from lwqc.graph.scalable import Consumer, Port, Span, Unscalable, find_spans
from lwqc.graph.weights import stored_tensor
from lwqc.passes.edit import add_constant, float_type
from lwqc.passes.migrate_scales import Factor, lazy, multiply, own_source, store

Vector = NDArray[np.float64]
_NOT_NUMBERS = frozenset({"Shape", "Size"})


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


class FoldNorms(ir.passes.InPlacePass):
    """Give norms the gain 1 and the bias 0.

    Matches: a norm, or a product with a stored vector as exporters write the end of one, maybe
        with a stored vector added, whose readers are all linear layers.
    Rewrites to: weights times the gain, layers' biases plus weights times the norm's bias, under
        the same names. The neutral gain and bias stay, so that runtimes still fuse the norm. A
        MatMul without a bias gets an Add.
    Refuses: other norms; the reasons are in `skipped` after a call.
    """

    def __init__(self) -> None:
        super().__init__()
        self.skipped: tuple[Unscalable, ...] = ()

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fold all norms that can be folded."""
        found = find_foldable_norms(model)
        self.skipped = found.skipped
        for norm in found.norms:
            _fold(model.graph, norm)
        return ir.passes.PassResult(model, bool(found.norms))


def find_foldable_norms(model: ir.Model) -> FoldableNorms:
    """Which norms can be folded, and why not the others; the model is not changed."""
    found = find_spans(model)
    norms: list[Foldable] = []
    skipped = [s for s in found.skipped if not _is_layer(s.op)]
    for span in found.spans:
        gains = [port for port in span.producers if port.kind == "gain"]
        answer = _foldable(span)
        if isinstance(answer, Foldable):
            norms.append(answer)
        else:
            skipped += [
                Unscalable(gain.node.outputs[0].name or "", gain.node.op_type, answer)
                for gain in gains
            ]
    return FoldableNorms(tuple(norms), tuple(skipped))


def _foldable(span: Span) -> Foldable | str:
    ports = {port.kind: port for port in span.producers}
    gain, bias = ports.get("gain"), ports.get("bias")
    if gain is None or len(ports) < len(span.producers) or "weight" in ports:
        return "its result is combined with other tensors"
    output = gain.node.outputs[0]
    if bias is not None and bias.node is not gain.node:
        if _readers(output) != [bias.node]:
            return "its result is read without the bias, too"
        output = bias.node.outputs[0]
    layers = [consumer.node for consumer in span.consumers]
    for reader in _readers(output):
        if reader not in layers and reader.op_type not in _NOT_NUMBERS:
            return f"is read by {reader.op_type} {node_name(reader)}, which is no linear layer"
    for consumer in span.consumers:
        reason = _unfit(consumer, span, output, biased=bias is not None)
        if reason:
            return reason
    return Foldable(output, gain, bias, span.consumers)


def _readers(value: ir.Value) -> list[ir.Node]:
    return [use.node for use in value.uses()]


def _unfit(reader: Consumer, span: Span, output: ir.Value, *, biased: bool) -> str | None:
    """Why a layer cannot take the norm's gain and bias."""
    name = f"{reader.node.op_type} {node_name(reader.node)}"
    if reader.activation is not output:
        return f"{name} reads it behind other operators"
    if not np.array_equal(reader.features, np.arange(span.channels)):
        return f"{name} reads only a part of it"
    if not biased:
        return None
    padded = any(reader.node.attributes[a].as_ints() for a in ("pads",) if a in reader.node.attributes)
    if padded and any(reader.node.attributes["pads"].as_ints()):
        return f"{name} pads with zeros, which the norm's bias would change"
    operand = linear_operand(reader.node)
    assert isinstance(operand, Operand)
    has_bias = len(reader.node.inputs) > 2 and reader.node.inputs[2] is not None
    if has_bias and bias_operand(reader.node, operand.out) is None:
        return f"the bias of {name} is not stored per channel"
    return None


def _is_layer(op: str) -> bool:
    return op in ("MatMul", "Gemm", "Conv")


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
    shape = tensor.shape.numpy()
    store(source, lazy(tensor, tensor.name, lambda: np.full(shape, number)))


def _add_bias(graph: ir.Graph, reader: Consumer, bias: Vector) -> None:
    """Add W · bias, W as it is before the gain, to the layer's bias."""
    operand = linear_operand(reader.node)
    assert isinstance(operand, Operand)
    weight, axis = operand.weight.tensor, operand.stored_axis(operand.out_axis)

    def shift() -> Vector:
        products = weight.numpy().astype(np.float64) * bias[reader.channels]
        return products.sum(axis=tuple(a for a in range(products.ndim) if a != axis))

    slot = bias_operand(reader.node, operand.out)
    value = own_operand(graph, *slot) if slot is not None else _new_bias(graph, operand)
    tensor = stored_tensor(value)
    assert tensor is not None
    shape = tensor.shape.numpy()
    store(value, lazy(tensor, tensor.name, lambda: tensor.numpy() + shift().reshape(shape)))
