"""Which numbers in a graph must be scaled alike: a unification over the channels of all tensors.

Every channel that some producer could scale gets an id. Operators say which ids must be equal,
which are absorbed and which cannot change. An id without a reason against it is free: multiplying
its channel by any positive number at all places where it occurs leaves the outputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.graph.captures import captures
from lwqc.graph.integers import Integers
from lwqc.graph.linear_operand import Operand
from lwqc.graph.sampled import Sampled
from lwqc.model.weights import Weight, is_float, static_shape, trace_weight

Kind = Literal["gain", "bias", "weight"]
# Ids along the axes of a tensor: its rank, size 1 where all indices have the same.
Labels = NDArray[np.intp]
_FREE = np.iinfo(np.intp).max
_NONE: Labels = np.zeros(0, np.intp)


@dataclass(frozen=True, eq=False)
class Port:
    """A stored operand that can absorb a scale.

    labels: ids, broadcastable to the stored tensor; -1 where it keeps its numbers.
    inward: it is multiplied by s and takes scaled values in, else divided by s and gives them out.
    features: ids of the channels that it takes in.
    """

    node: ir.Node
    operand: int
    weight: Weight
    kind: Kind
    inward: bool
    labels: Labels
    features: Labels


class Classes:
    """Union-find over ids, and why some of them cannot be scaled."""

    def __init__(self) -> None:
        self._parent = np.zeros(0, np.intp)
        self._why = np.zeros(0, np.intp)  # number of the first reason, by root
        self._reasons: list[str] = []

    @property
    def size(self) -> int:
        """How many ids there are."""
        return len(self._parent)

    def fresh(self, shape: Sequence[int]) -> Labels:
        """New ids, all different."""
        start, count = len(self._parent), int(np.prod(shape))
        ids = np.arange(start, start + count)
        self._parent = np.concatenate([self._parent, ids])
        self._why = np.concatenate([self._why, np.full(count, _FREE)])
        return ids.reshape(shape)

    def find(self, ids: Labels) -> Labels:
        """The id that stands for all that equal each."""
        roots = self._parent[ids]
        while (above := self._parent[roots]).tobytes() != roots.tobytes():
            roots = above
        self._parent[ids] = roots
        return roots

    def unite(self, a: Labels, b: Labels) -> None:
        """Make ids equal, element by element."""
        a, b = (x.ravel() for x in np.broadcast_arrays(a, b))
        while (different := (a := self.find(a)) != (b := self.find(b))).any():
            a, b = a[different], b[different]
            low, high = np.minimum(a, b), np.maximum(a, b)
            np.minimum.at(self._parent, high, low)
            np.minimum.at(self._why, low, self._why[high])

    def freeze(self, ids: Labels, reason: str) -> None:
        """Say why ids cannot be scaled."""
        self._reasons.append(reason)
        np.minimum.at(self._why, self.find(ids).ravel(), len(self._reasons) - 1)

    def free(self, ids: Labels) -> NDArray[np.bool_]:
        """Which of the ids can be scaled."""
        result: NDArray[np.bool_] = self._why[self.find(ids)] == _FREE
        return result

    def reason(self, ids: Labels) -> str | None:
        """Why some of the ids cannot be scaled."""
        first = int(self._why[self.find(ids)].min(initial=_FREE))
        return None if first == _FREE else self._reasons[first]


class UnfitError(Exception):
    """A node's operands or attributes do not fit its operator; its text says how."""


class Labelling:
    """Ids of all tensors of a graph while its nodes are visited in order; rules call its methods.

    labels: by value; one without stays as it is. ports: stored operands that absorb scales.
    refused: norms (`gain`) and layers (`weight`) that can scale nothing, and why.
    """

    def __init__(self, model: ir.Model, shapes: Mapping[str, Sampled]) -> None:
        self.shapes = shapes
        self.opset = int(model.opset_imports.get("", 1))
        self.classes = Classes()
        self.integers = Integers(model.graph, shapes)
        self.labels: dict[ir.Value, Labels] = {}
        self.ports: list[Port] = []
        self.refused: list[tuple[ir.Node, Kind, str]] = []
        self._captured: dict[ir.Node, list[ir.Value]] = {}
        for node, values in captures(model.graph):
            self._captured.setdefault(node, []).extend(values)

    def freeze_captured(self, node: ir.Node) -> bool:
        """Freeze what the bodies of a node read; whether it has any."""
        for value in self._captured.get(node, ()):
            self.freeze(value, f"is read in the body of {where(node)}")
        return node in self._captured

    def of(self, node: ir.Node, index: int) -> Labels | None:
        """Ids of an operand, None if it is not scaled."""
        value = node.inputs[index] if index < len(node.inputs) else None
        return self.labels.get(value) if value is not None else None

    def size(self, value: ir.Value | None) -> Sampled | None:
        """Sizes of a tensor; None if they are not known."""
        return self.shapes.get(value.name or "") if value is not None else None

    def freeze(self, value: ir.Value | None, reason: str) -> None:
        """Keep a tensor as it is."""
        labels = self.labels.get(value) if value is not None else None
        if labels is not None:
            self.classes.freeze(labels, reason)

    def freeze_operands(self, node: ir.Node, reason: str, but: Iterable[int] = ()) -> None:
        """Keep all operands of a node as they are, but for some."""
        for index, value in enumerate(node.inputs):
            if index not in but:
                self.freeze(value, reason)

    def drop_misfits(self, node: ir.Node) -> None:
        """Forget ids of outputs that contradict the sizes at hand, and keep those as they are."""
        for value in node.outputs:
            labels, sizes = self.labels.get(value), self.size(value)
            if labels is None or sizes is None:
                continue
            stated = sizes.first[sizes.rank - labels.ndim :] if labels.ndim <= sizes.rank else ()
            fits = len(stated) == labels.ndim
            if not fits or any(n not in (1, s) for n, s in zip(labels.shape, stated, strict=True)):
                self.classes.freeze(labels, f"{where(node)} gives another shape than is stated")
                del self.labels[value]

    def is_free(self, labels: Labels | None) -> bool:
        """Whether any channel can be scaled so far."""
        return labels is not None and bool(self.classes.free(labels).any())

    def absorb(self, node: ir.Node, operand: int, kind: Kind, labels: Labels) -> bool:
        """Let a stored operand give its output scaled as `labels` (aligned at the last axis) say.

        False if it cannot.
        """
        value = node.inputs[operand] if operand < len(node.inputs) else None
        weight = trace_weight(value)
        if weight is None or weight.steps or not is_float(weight.tensor):
            return False
        shape = static_shape(weight.tensor)
        labels = labels.reshape((1,) * (len(shape) - labels.ndim) + labels.shape)
        extra = labels.ndim - len(shape)
        if any(n > 1 for n in labels.shape[:extra]):
            return False
        own: Labels = labels.reshape(labels.shape[extra:])
        if any(n > 1 and n != size for n, size in zip(own.shape, shape, strict=True)):
            return False
        self.ports.append(Port(node, operand, weight, kind, False, own, _NONE))
        return True

    def linear(self, operand: Operand, labels: Labels | None, channels: int) -> Labels:
        """A weight takes in scaled channels and gives out others; returns the ids [out].

        labels: of the activation. channels: its axis of input channels.
        """
        node, shape = operand.node, operand.shape
        if labels is not None:
            ids: Labels = np.moveaxis(labels, channels, -1)
            if any(n > 1 for n in ids.shape[:-1]):
                self.freeze(node.inputs[0], f"{where(node)} does not sum over the scaled axis")
            if ids.shape[-1] not in (1, _inputs(operand)):
                raise UnfitError(f"{where(node)} has a weight for another number of channels")
            ids = np.broadcast_to(ids.reshape(-1, ids.shape[-1])[0], _inputs(operand))
            self._port(operand, _taken_in(operand, ids), ids)
        out = self.classes.fresh((operand.out,))
        along = [1] * len(shape)
        along[operand.out_axis] = operand.out
        self._port(operand, out.reshape(along))
        return out

    def _port(self, operand: Operand, labels: Labels, features: Labels = _NONE) -> None:
        for step in reversed(operand.weight.steps):
            if step.op_type == "Transpose":
                perm = step.attributes.get("perm")
                order = perm.as_ints() if perm is not None else range(labels.ndim)[::-1]
                labels = labels.transpose(np.argsort(order))
        inward = features.size > 0
        self.ports.append(Port(operand.node, 1, operand.weight, "weight", inward, labels, features))


def _inputs(operand: Operand) -> int:
    """Channels of the activation."""
    if operand.node.op_type == "Conv":
        return operand.groups * operand.shape[1]
    return operand.shape[1 - operand.out_axis]


def _taken_in(operand: Operand, ids: Labels) -> Labels:
    """Ids of the input channels along the axes of the weight."""
    if operand.node.op_type != "Conv":
        return ids[:, None] if operand.out_axis == 1 else ids[None]
    kernel = (1,) * (len(operand.shape) - 2)
    per_group = ids.reshape(operand.groups, -1)
    outputs = operand.out // operand.groups if operand.groups > 1 else 1
    return per_group.repeat(outputs, 0).reshape(-1, per_group.shape[1], *kernel)


def where(node: ir.Node) -> str:
    """How messages name a node."""
    return f"{node.op_type} {node.name or node.outputs[0].name}"
