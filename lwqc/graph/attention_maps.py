"""Attention probabilities of a graph, and those that say how much a layer's tokens are read."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from math import prod

import onnx_ir as ir

from lwqc.graph.captures import captures
from lwqc.graph.sites import Site
from lwqc.model.weights import trace_weight

# From the Softmax to its product with the values: masked rows are repaired, types change.
_KEEPS = frozenset({"Where", "Cast", "Identity", "Dropout", "Reshape"})
_FLATTENS = frozenset({"Reshape", "Flatten"})
_MADE_UP = "unk__"  # names that ONNX's shape inference gives to sizes it does not know
_LINEAR = frozenset({"MatMul", "Gemm", "Conv"})


@dataclass(frozen=True, eq=False)
class AttentionMap:
    """Probabilities [batch, heads, queries, keys], or [batch * heads, queries, keys].

    value: what the product reads. product: the MatMul with the values. queries, keys, values: the
    linear layers that these are made by.
    """

    value: ir.Value
    product: ir.Node
    queries: frozenset[ir.Node]
    keys: frozenset[ir.Node]
    values: frozenset[ir.Node]

    @property
    def is_self_attention(self) -> bool:
        """Whether queries and values are made of the same tokens."""
        return not _inputs(self.queries).isdisjoint(_inputs(self.values))

    @property
    def own(self) -> frozenset[ir.Node]:
        """Linear layers that read the tokens whose columns the map has."""
        others = self.queries if self.is_self_attention else frozenset()
        return self.keys | self.values | others


@dataclass(frozen=True)
class TokenWeights:
    """map: attention probabilities. tokens: a tensor [batch, tokens, features].

    The sum over heads and queries of the map's columns weighs the rows of `tokens`; of a longer
    map (with a cache) the last columns do.
    """

    map: str
    tokens: str


class AttentionMaps:
    """The attention maps of a model's main graph, in graph order."""

    def __init__(self, model: ir.Model) -> None:
        """model: with shapes, as far as they are known."""
        self._graph = model.graph
        self._position = {node: i for i, node in enumerate(self._graph)}
        self._captured = {node: tuple(values) for node, values in captures(self._graph)}
        self._linear = {node for node in self._graph if _is_linear(node)}
        found = (self._at(node) for node in self._graph)
        self.maps = tuple(m for m in found if m is not None)

    def token_weights(self, site: Site) -> TokenWeights | str:
        """What weighs the tokens that a site reads, or why nothing does.

        Attention layers have their own map; others that of the nearest attention before them.
        """
        if not self.maps:
            return (
                "the model has no attention map (a Softmax whose product with values is a MatMul)"
            )
        products = [use.node for use in site.uses if use.node in self._linear]
        node = next((n for n in products if n.op_type != "Conv"), None)
        if node is None:
            return "its input is not that of a matrix product"
        found = self._map_of(node)
        if found is None:
            return "no self-attention comes before it"
        return _aligned(found, node)

    def _map_of(self, node: ir.Node) -> AttentionMap | None:
        for own in self.maps:
            if node in own.own:
                return own
        self_maps = [m for m in self.maps if m.is_self_attention]
        near = self._ancestors(node.inputs[0], self._linear)
        for own in self_maps:  # the projection of what attention gave
            if own.product in near:
                return own
        before = self._ancestors(node.inputs[0], ())
        return next((m for m in reversed(self_maps) if m.product in before), None)

    def _at(self, softmax: ir.Node) -> AttentionMap | None:
        """The map that a Softmax gives; None when it is something else."""
        if softmax.domain != "" or softmax.op_type != "Softmax" or not _is_last_axis(softmax):
            return None
        found = _product(softmax.outputs[0])
        if found is None:
            return None
        value, product = found
        scores = self._scores(softmax)
        if scores is None:
            return None
        return AttentionMap(
            value,
            product,
            queries=self._layers(scores.inputs[0]),
            keys=self._layers(scores.inputs[1]),
            values=self._layers(product.inputs[1]),
        )

    def _scores(self, softmax: ir.Node) -> ir.Node | None:
        """The nearest product of two activations before a Softmax: queries with keys."""
        pending = [softmax]
        seen: set[ir.Node] = set()
        while pending:
            following = []
            for node in pending:
                for value in self._reads(node):
                    producer = value.producer()
                    if producer is None or producer in seen:
                        continue
                    seen.add(producer)
                    if producer.op_type == "MatMul" and producer not in self._linear:
                        return producer
                    following.append(producer)
            pending = following
        return None

    def _layers(self, value: ir.Value | None) -> frozenset[ir.Node]:
        return frozenset(self._ancestors(value, self._linear) & self._linear)

    def _ancestors(self, value: ir.Value | None, stop: Collection[ir.Node]) -> set[ir.Node]:
        """Nodes that a value depends on, up to and including those of `stop`."""
        found: set[ir.Node] = set()
        pending = [value.producer() if value is not None else None]
        while pending:
            node = pending.pop()
            if node is None or node in found:
                continue
            found.add(node)
            if node not in stop:
                pending.extend(v.producer() for v in self._reads(node))
        return found

    def _reads(self, node: ir.Node) -> Iterator[ir.Value]:
        yield from (v for v in node.inputs if v is not None)
        yield from self._captured.get(node, ())


def token_weights(model: ir.Model, site: Site) -> TokenWeights | str:
    """`AttentionMaps.token_weights` for one site."""
    return AttentionMaps(model).token_weights(site)


def _is_linear(node: ir.Node) -> bool:
    """Whether it multiplies an activation with a stored weight."""
    if node.domain != "" or node.op_type not in _LINEAR:
        return False
    return trace_weight(node.inputs[1]) is not None and trace_weight(node.inputs[0]) is None


def _is_last_axis(softmax: ir.Node) -> bool:
    attribute, shape = softmax.attributes.get("axis"), softmax.outputs[0].shape
    # Before opset 13 the default was 1, which no exporter relies on for attention.
    axis = -1 if attribute is None else attribute.as_int()
    return axis == -1 or (shape is not None and axis == shape.rank() - 1)


def _product(value: ir.Value) -> tuple[ir.Value, ir.Node] | None:
    """Follow probabilities to their product with values: (what it reads, the MatMul)."""
    pending, seen = [value], {value}
    while pending:
        current = pending.pop()
        for use in current.uses():
            node = use.node
            if node.op_type == "MatMul" and use.idx == 0:
                return (current, node) if trace_weight(node.inputs[1]) is None else None
            if node.op_type in _KEEPS and node.outputs[0] not in seen:
                seen.add(node.outputs[0])
                pending.append(node.outputs[0])
    return None


def _inputs(layers: Collection[ir.Node]) -> set[ir.Value | None]:
    return {layer.inputs[0] for layer in layers}


def _aligned(found: AttentionMap, node: ir.Node) -> TokenWeights | str:
    """The map and the tokens of a layer if they are known to belong together."""
    tokens = node.inputs[0]
    assert tokens is not None
    source = tokens.producer()
    if _rank(tokens) == 2 and source is not None and source.op_type in _FLATTENS:
        before = source.inputs[0]
        if before is not None and _keeps_tokens(before, tokens):
            tokens = before
    elif _rank(tokens) != 3:
        return f"its input {_text(tokens)} is no [batch, tokens, features]"
    if tokens.shape is None or tokens.shape.rank() < 3:
        return f"its input {_text(tokens)} is no [batch, tokens, features]"
    wrong = _mismatch(tokens.shape, found)
    return wrong or TokenWeights(found.value.name or "", tokens.name or "")


def _mismatch(tokens: ir.Shape, found: AttentionMap) -> str:
    """Why the tokens are not the map's, or ""."""
    probabilities, rank = found.value.shape, _rank(found.value)
    if probabilities is None or rank not in (3, 4):
        return f"its attention map {_text(found.value)} is no [batch, heads, queries, keys]"
    # A cache makes the map of self-attention wider than its tokens, but not higher.
    length = probabilities[-2 if found.is_self_attention else -1]
    batch_differs = rank == 4 and _differ(tokens[0], probabilities[0])
    if batch_differs or _differ(tokens[1], length):
        return f"its input {tokens} does not hold the tokens of its attention map {probabilities}"
    return ""


def _differ(a: int | ir.SymbolicDim, b: int | ir.SymbolicDim) -> bool:
    """Whether two sizes are known to be different, or are written differently."""
    x, y = _known(a), _known(b)
    return x is not None and y is not None and x != y


def _known(size: int | ir.SymbolicDim) -> int | str | None:
    """A size or its name; None for one that shape inference made up."""
    value = size if isinstance(size, int) else size.value
    return None if isinstance(value, str) and value.startswith(_MADE_UP) else value


def _rank(value: ir.Value) -> int | None:
    return None if value.shape is None else value.shape.rank()


def _text(value: ir.Value) -> str:
    return "of unknown shape" if value.shape is None else str(value.shape)


def _keeps_tokens(before: ir.Value, after: ir.Value) -> bool:
    """Whether [batch, tokens, ...features] was only flattened to [rows, features]."""
    if before.shape is None or after.shape is None or before.shape.rank() < 3:
        return False
    sizes = [d for d in before.shape[2:] if isinstance(d, int)]
    return len(sizes) == before.shape.rank() - 2 and prod(sizes) == after.shape[-1]
