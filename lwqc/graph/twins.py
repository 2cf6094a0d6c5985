"""Nodes that do the same on different channels, and the one node that could do it for all.

Two linear layers that read one value are one layer with more channels; what works channel by
channel on both results (a bias, GELU, a depthwise convolution) can then work on the whole. Nothing
is changed here: `Joined` says what to make, `lwqc.passes.merge_parallel` makes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from lwqc.graph.mergeable import PLAIN, Layer, attribute_key, mergeable
from lwqc.graph.operands import only_reader
from lwqc.graph.rules import RULES, elementwise
from lwqc.model.weights import Weight, trace_weight, weight_shape

Values = tuple[ir.Value, ...]
_DEEPEST = 64  # nodes from a sum back to the layers that make its channels
_COMPARED = 4096  # numbers of a stored tensor that is compared with another
_ELEMENTWISE = {elementwise.one_tensor, elementwise.broadcast, elementwise.clip}
_RANDOM = frozenset({"Bernoulli"})  # elementwise, but the whole would draw other numbers
_BATCH_NORM = RULES["", "BatchNormalization"]


@dataclass(frozen=True, eq=False)
class Stacked:
    """Stored operands, laid end to end along an axis; added up where it is None."""

    parts: tuple[Weight, ...]
    axis: int | None


@dataclass(frozen=True, eq=False)
class Joined:
    """One node in the place of several.

    members: the nodes, whose results it has side by side. axis: of the channels, counted from the
    end. sizes: channels of each member. groups: of a grouped convolution, 0 for other nodes.
    """

    members: tuple[ir.Node, ...]
    inputs: tuple[Whole | None, ...]
    axis: int
    sizes: tuple[int, ...]
    groups: int = 0

    def replaced(self) -> set[ir.Node]:
        """All nodes that this and what it reads take the place of."""
        inner = (i.replaced() for i in self.inputs if isinstance(i, Joined))
        return set(self.members).union(*inner)


Whole = Joined | Stacked | ir.Value


class Twins:
    """Finds the whole that values are the pieces of; what it found once it keeps."""

    def __init__(
        self, layers: Iterable[Layer], known: Mapping[Values, Joined | ir.Value] | None = None
    ) -> None:
        """layers: those that may be merged. known: wholes that were found before."""
        self._layers = {found.node: found for found in layers}
        self._known: dict[Values, Joined | ir.Value | None] = dict(known or {})

    def whole(self, values: Values, axis: int, depth: int = _DEEPEST) -> Joined | ir.Value | None:
        """What has the values side by side along an axis, without a Concat; or None.

        They are the pieces of one Split, or computed by nodes that differ in stored operands only,
        from a value that all of them read. Their other readers are not looked at.
        """
        if values not in self._known:
            self._known[values] = None  # while it is being looked for
            self._known[values] = split_whole(values, axis) or self._joined(values, axis, depth)
        return self._known[values]

    def _joined(self, values: Values, axis: int, depth: int) -> Joined | None:
        nodes = tuple(n for n in (v.producer() for v in values) if n is not None)
        if not depth or len(set(nodes)) < len(values) or any(len(n.outputs) > 1 for n in nodes):
            return None
        if len({len(n.inputs) for n in nodes}) > 1:
            return None
        rule = RULES.get((nodes[0].domain, nodes[0].op_type))
        same = len({attribute_key(n) for n in nodes}) == 1
        if all(n in self._layers for n in nodes):
            joined = join_layers([self._layers[n] for n in nodes])
            if joined is not None:
                return joined
        if same and rule in _ELEMENTWISE and nodes[0].op_type not in _RANDOM:
            return self._elementwise(nodes, axis, depth)
        if same and rule is _BATCH_NORM:
            return self._batch_norm(nodes, axis, depth)
        if nodes[0].op_type == "Conv":
            return self._grouped(nodes, axis, depth)
        return None

    def _elementwise(self, nodes: tuple[ir.Node, ...], axis: int, depth: int) -> Joined | None:
        rows = list(zip(*(n.inputs for n in nodes), strict=True))
        stored = [all(v is None or trace_weight(v) is not None for v in row) for row in rows]
        found: list[Whole | None] = [None] * len(rows)
        sizes: set[tuple[int, ...]] = set()
        for i, row in enumerate(rows):
            if stored[i]:
                continue
            values = tuple(v for v in row if v is not None)
            part = self.whole(values, axis, depth - 1) if len(values) == len(row) else None
            piece_sizes = _sizes(part, values, axis)
            if part is None or piece_sizes is None:
                return None
            found[i] = part
            sizes.add(piece_sizes)
        if len(sizes) != 1:
            return None
        (counts,) = sizes
        for i, row in enumerate(rows):
            if stored[i] and any(v is not None for v in row):
                found[i] = _beside(row, axis, counts)
                if found[i] is None:
                    return None
        return Joined(nodes, tuple(found), axis, counts)

    def _batch_norm(self, nodes: tuple[ir.Node, ...], axis: int, depth: int) -> Joined | None:
        pieces = _operands(nodes, 0)
        data = self.whole(pieces, axis, depth - 1)
        counts = _sizes(data, pieces, axis)
        shape = nodes[0].outputs[0].shape
        if data is None or counts is None or shape is None or axis != 1 - shape.rank():
            return None
        vectors = [_beside(_operands(nodes, i), -1, counts) for i in range(1, 5)]
        return None if None in vectors else Joined(nodes, (data, *vectors), axis, counts)

    def _grouped(self, nodes: tuple[ir.Node, ...], axis: int, depth: int) -> Joined | None:
        """Convolutions in groups of one size: the whole has the groups of all of them."""
        found = [mergeable(n) for n in nodes]
        layers = [a for a in found if isinstance(a, Layer)]
        alike = {
            (attribute_key(a.node, ["group"]), a.key[1:], a.operand.features, _per_group(a))
            for a in layers
        }
        if len(layers) < len(nodes) or len(alike) > 1 or axis != layers[0].axis:
            return None
        if any(a.operand.groups == 1 for a in layers):
            return None  # two dense convolutions would be a slow grouped one
        data = self.whole(_operands(nodes, 0), axis, depth - 1)
        if data is None:
            return None
        joined = join_layers(layers, grouped=True)
        assert joined is not None
        groups = sum(a.operand.groups for a in layers)
        return Joined(nodes, (data, *joined.inputs[1:]), axis, joined.sizes, groups)


def join_layers(layers: Sequence[Layer], *, grouped: bool = False) -> Joined | None:
    """One layer for those that read the same value; grouped: the caller sees to what is read."""
    first = layers[0]
    if not grouped:
        read = {a.operand.activation for a in layers}
        if len(read) > 1 or len({a.key for a in layers}) > 1 or first.operand.groups > 1:
            return None
    weight = Stacked(tuple(a.operand.weight for a in layers), first.operand.out_axis)
    inputs: list[Whole] = [first.operand.activation, weight]
    biases = tuple(a.bias for a in layers if a.bias is not None)
    if biases:
        inputs.append(Stacked(biases, -1))
    nodes, sizes = tuple(a.node for a in layers), tuple(a.operand.out for a in layers)
    return Joined(nodes, tuple(inputs), first.axis, sizes)


def extended(joined: Joined) -> Joined:
    """With the chains of twin nodes that are all that reads the members, other operands stored."""
    while True:
        outputs = tuple(node.outputs[0] for node in joined.members)
        nodes = tuple(n for n in (only_reader(v) for v in outputs) if n is not None)
        results = tuple(n.outputs[0] for n in nodes)
        if len(nodes) < len(outputs) or len(set(nodes)) < len(nodes):
            return joined
        longer = Twins((), {outputs: joined}).whole(results, joined.axis, depth=1)
        if not isinstance(longer, Joined) or any(_is_computed(i) for i in longer.inputs):
            return joined
        joined = longer


def _is_computed(part: Whole | None) -> bool:
    return isinstance(part, ir.Value) and trace_weight(part) is None


def split_whole(values: Values, axis: int) -> ir.Value | None:
    """What a Split has cut into just these pieces, in order."""
    node = values[0].producer()
    if node is None or node.domain or node.op_type != "Split" or tuple(node.outputs) != values:
        return None
    rank = None if values[0].shape is None else values[0].shape.rank()
    cut = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
    if cut >= 0 and rank is None:
        return None
    return node.inputs[0] if (cut if cut < 0 else cut - (rank or 0)) == axis else None


def _sizes(whole: Whole | None, values: Values, axis: int) -> tuple[int, ...] | None:
    """How many channels each piece has; None where the model does not say."""
    if isinstance(whole, Joined):
        return whole.sizes
    shapes = [v.shape for v in values]
    found = [s[axis] if s is not None and s.rank() >= -axis else None for s in shapes]
    counts = tuple(n for n in found if isinstance(n, int))
    return counts if len(counts) == len(values) else None


def _beside(
    row: Sequence[ir.Value | None], axis: int, counts: Sequence[int]
) -> Stacked | ir.Value | None:
    """Stored operands for the whole: end to end if they are per channel, one of them if equal."""
    weights = [w for w in (trace_weight(v) for v in row if v is not None) if w is not None]
    shapes = [weight_shape(w) for w in weights]
    if len(weights) < len(row) or None in shapes:
        return None
    known = [s for s in shapes if s is not None]
    plain = all(step.op_type in PLAIN for w in weights for step in w.steps)
    if len({len(s) for s in known}) > 1 or len({w.tensor.dtype for w in weights}) > 1:
        return None
    if all(len(s) >= -axis and s[axis] == n for s, n in zip(known, counts, strict=True)):
        rest = {s[: len(s) + axis] + s[len(s) + axis + 1 :] for s in known}
        return Stacked(tuple(weights), axis) if len(rest) == 1 and plain else None
    per_channel = any(len(s) >= -axis and s[axis] > 1 for s in known)
    return row[0] if not per_channel and _equal(row, weights) else None


def _equal(row: Sequence[ir.Value | None], weights: Sequence[Weight]) -> bool:
    if len(set(row)) == 1:
        return True
    if any(w.steps or w.tensor.size > _COMPARED for w in weights):
        return False
    first = weights[0].tensor.numpy()
    return all(np.array_equal(first, w.tensor.numpy()) for w in weights[1:])


def _per_group(found: Layer) -> int:
    return found.operand.out // max(found.operand.groups, 1)


def _operands(nodes: Iterable[ir.Node], index: int) -> Values:
    return tuple(v for v in (n.inputs[index] for n in nodes) if v is not None)
