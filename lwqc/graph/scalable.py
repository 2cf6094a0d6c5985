"""Spans: channels that can be multiplied by any positive number without changing the outputs.

Every producer of the channels divides by s and every consumer multiplies by it. Producers are
gains of norms, weights of linear layers on the side of their outputs, and biases; consumers are
weights on the side of their inputs. Between them are operators with f(x/s) = f(x)/s.
SmoothQuant (2211.10438), AWQ (2306.00978) and cross-layer equalisation (1906.04721) choose s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.graph import scale_labels
from lwqc.graph.sampled import Sampled
from lwqc.graph.scale_labels import Kind, Labelling, Labels
from lwqc.graph.scale_rules import visit
from lwqc.graph.shapes import declared_shapes
from lwqc.model.weights import Weight

Channels = NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class Port:
    """A stored operand of a node that absorbs the scales of a span.

    kind: `gain` (of a norm, or a stored vector that multiplies), `bias` (or another stored addend)
        or `weight`.
    channels: the span's channel for each number, broadcastable to the tensor as it is stored;
        -1 where it keeps its number.
    """

    node: ir.Node
    operand: int
    weight: Weight
    kind: Kind
    channels: Channels

    @property
    def tensor(self) -> str:
        """Name of the stored tensor; a site's name for weights."""
        return self.weight.name


@dataclass(frozen=True, eq=False)
class Consumer(Port):
    """A weight that takes scaled channels in.

    features: [input channels of the activation] -> the span's channel, or -1; input channels are
        on axis 1 of a convolution's activation, on the last of others.
    """

    features: Channels

    @property
    def activation(self) -> ir.Value:
        """The scaled tensor that it reads."""
        value = self.node.inputs[0]
        assert value is not None
        return value


@dataclass(frozen=True, eq=False)
class Span:
    """Channels that can be scaled together: producers divide by s [channels], consumers multiply.

    name: of the first tensor that has just these channels, else of one that has them all; channels
        are in its order.
    tensors: all that are scaled, in graph order.
    """

    name: str
    channels: int
    producers: tuple[Port, ...]
    consumers: tuple[Consumer, ...]
    tensors: tuple[ir.Value, ...]


@dataclass(frozen=True)
class Unscalable:
    """The output of a norm or linear layer that cannot be scaled, or only in part, and why.

    kind: whether it is the `gain` of a norm or a layer's `weight` that would have to be divided.
    """

    name: str
    op: str
    kind: Kind
    reason: str


@dataclass(frozen=True)
class SpanAnalysis:
    """All spans of a model in graph order, and what was left out."""

    spans: tuple[Span, ...]
    skipped: tuple[Unscalable, ...]


def find_spans(model: ir.Model, shapes: Mapping[str, Sampled] | None = None) -> SpanAnalysis:
    """List the spans of a model's main graph; the model is not changed.

    shapes: sizes of its tensors, see `graph.shapes`; computed if not given.
    """
    walk = Labelling(model, declared_shapes(model)[0] if shapes is None else shapes)
    for node in model.graph:
        visit(walk, node)
    for value in model.graph.outputs:
        walk.freeze(value, f"is the graph output {value.name}")
    return SpanAnalysis(tuple(_spans(walk)), tuple(_skipped(walk)))


def _spans(walk: Labelling) -> list[Span]:
    component = _components(walk)
    ports: dict[int, list[scale_labels.Port]] = {}
    for port in walk.ports:
        for number in _numbers(walk, component, port.labels):
            ports.setdefault(number, []).append(port)
    tensors: dict[int, list[ir.Value]] = {}
    for value, labels in walk.labels.items():
        for number in _numbers(walk, component, labels):
            tensors.setdefault(number, []).append(value)
    consumed = {n: any(p.inward for p in found) for n, found in ports.items()}
    return [
        _span(walk, component == number, ports[number], values)
        for number, values in tensors.items()
        if consumed.get(number)
    ]


def _components(walk: Labelling) -> NDArray[np.intp]:
    """Number of the span by id; ids that are free and meet in one operand are in one span."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    edges = [
        (roots[:1].repeat(len(roots)), roots)
        for p in walk.ports
        for roots in [_roots(walk, p.labels)]
    ]
    size = walk.classes.size
    first, second = (
        np.concatenate([e[i] for e in edges] or [np.zeros(0, np.intp)]) for i in (0, 1)
    )
    matrix = coo_array((np.ones(len(first), bool), (first, second)), shape=(size, size))
    return connected_components(matrix, directed=False)[1].astype(np.intp)


def _roots(walk: Labelling, labels: Labels) -> Channels:
    """Different free ids, in the order in which they come."""
    ids = walk.classes.find(labels.ravel())
    unique, first = np.unique(ids[walk.classes.free(ids)], return_index=True)
    return unique[np.argsort(first)]


def _numbers(walk: Labelling, component: NDArray[np.intp], labels: Labels) -> list[int]:
    return list(dict.fromkeys(component[_roots(walk, labels)].tolist()))


def _span(
    walk: Labelling,
    member: NDArray[np.bool_],
    ports: Sequence[scale_labels.Port],
    tensors: Sequence[ir.Value],
) -> Span:
    """member: whether an id is in the span."""
    roots = [(r, r[member[r]]) for r in (_roots(walk, walk.labels[v]) for v in tensors)]
    present = np.unique(np.concatenate([own for _, own in roots]))
    count = len(present)
    whole = [i for i, (_, own) in enumerate(roots) if len(own) == count]
    exact = [i for i in whole if walk.labels[tensors[i]].size == count]
    chosen = next(iter(exact + whole), None)
    value = ports[0].node.outputs[0] if chosen is None else tensors[chosen]
    order = present if chosen is None else roots[chosen][1]
    channel = np.full(walk.classes.size, -1, np.intp)
    channel[order] = np.arange(count)

    def numbered(labels: Labels) -> Channels:
        return channel[walk.classes.find(labels)]

    producers = [
        Port(p.node, p.operand, p.weight, p.kind, numbered(p.labels)) for p in ports if not p.inward
    ]
    consumers = [
        Consumer(p.node, p.operand, p.weight, p.kind, numbered(p.labels), numbered(p.features))
        for p in ports
        if p.inward
    ]
    return Span(value.name or "", count, tuple(producers), tuple(consumers), tuple(tensors))


def _skipped(walk: Labelling) -> list[Unscalable]:
    """Why outputs of norms and linear layers are in no span, in graph order of the layers."""
    found = {node: (kind, reason) for node, kind, reason in walk.refused}
    for port in walk.ports:
        if not port.inward and port.kind != "bias":
            reason = walk.classes.reason(port.labels)
            if reason is not None:
                part = "in part: " if walk.classes.free(port.labels).any() else ""
                found.setdefault(port.node, (port.kind, part + reason))
    return [
        Unscalable(node.outputs[0].name or "", node.op_type, kind, reason)
        for node, (kind, reason) in found.items()
    ]
