"""Moves scales from activations into the weights that read them; the outputs stay."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.errors import InputError
from lwqc.graph.scalable import Port, Span, find_spans
from lwqc.model.edit import Rewrite, add_initializer, lazy_like, replace_stored
from lwqc.model.tensor_bytes import read_array
from lwqc.model.weights import stored_tensor

Vector = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Factor:
    """A stored operand and what multiplies its numbers: values[port.channels], 1 elsewhere."""

    port: Port
    values: Vector


class MigrateScales(Rewrite):
    """Divide the channels of spans by s.

    scales: name of the span -> s [channels], positive.
    Matches: spans that `graph.scalable` finds.
    Rewrites to: producers divided by s and consumers multiplied by it, under the same names and in
        the same types. A gain or bias that has other readers is copied first.
    Refuses: with InputError, an unknown span, scales of a wrong length, or that are not positive
        and finite.
    """

    def __init__(self, scales: Mapping[str, NDArray[np.floating]]) -> None:
        super().__init__()
        self._scales = {name: np.asarray(s, np.float64) for name, s in scales.items()}

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Scale all spans that have an entry; all others stay."""
        if not self._scales:
            return ir.passes.PassResult(model, False)
        found = find_spans(model)
        spans = {span.name: span for span in found.spans}
        reasons = {skipped.name: skipped.reason for skipped in found.skipped}
        factors: list[Factor] = []
        for name, scales in self._scales.items():
            if name not in spans:
                reason = reasons.get(name, "the model has no such span")
                raise InputError(f"{name}: its channels cannot be scaled: {reason}")
            factors += span_factors(spans[name], scales)
        multiply(model.graph, factors)
        return ir.passes.PassResult(model, True)


def span_factors(span: Span, scales: Vector) -> list[Factor]:
    """What multiplies each stored operand of a span. Raises InputError as `MigrateScales` does."""
    if scales.shape != (span.channels,):
        raise InputError(f"{span.name}: has {span.channels} channels, scales are {scales.shape}")
    if not (np.isfinite(scales).all() and (scales > 0).all()):
        raise InputError(f"{span.name}: scales must be positive and finite")
    return [
        *(Factor(port, 1 / scales) for port in span.producers),
        *(Factor(port, scales) for port in span.consumers),
    ]


def multiply(graph: ir.Graph, factors: Iterable[Factor]) -> None:
    """Rewrite each stored tensor once, all its factors together."""
    by_value: dict[ir.Value, list[Factor]] = {}
    for factor in factors:
        by_value.setdefault(own_source(graph, factor.port), []).append(factor)
    for value, found in by_value.items():
        _multiply(value, found)


def own_source(graph: ir.Graph, port: Port) -> ir.Value:
    """The stored tensor that only this port reads: its own, or a copy of a shared one."""
    if port.weight.steps:
        return port.weight.source  # a weight, with no other reader
    return own_operand(graph, port.node, port.operand)


def own_operand(graph: ir.Graph, node: ir.Node, index: int) -> ir.Value:
    """The stored tensor that only this operand reads."""
    source = node.inputs[index]
    tensor = stored_tensor(source)
    assert source is not None
    assert tensor is not None
    if len(source.uses()) == 1 and not source.is_graph_output():
        return source
    name = f"{source.name}/{node.name or node.outputs[0].name}"
    value = add_initializer(graph, lazy_like(tensor, name, lambda: read_array(tensor)))
    node.replace_input_with(index, value)
    return value


def _multiply(value: ir.Value, factors: Sequence[Factor]) -> None:
    tensor = stored_tensor(value)
    assert tensor is not None

    def product() -> NDArray[np.generic]:
        array = read_array(tensor).astype(np.float64)
        for factor in factors:
            channels = factor.port.channels
            array *= np.where(channels >= 0, factor.values[channels], 1.0)
        return array

    replace_stored(value, lazy_like(tensor, tensor.name, product))
