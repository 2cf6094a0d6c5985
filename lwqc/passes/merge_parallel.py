"""Makes one wider layer of linear layers that read the same value or whose results are added."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from lwqc.graph.mergeable import Layer, mergeable
from lwqc.graph.shapes import known_equal
from lwqc.graph.sums import sums, terms
from lwqc.graph.twins import Joined, Stacked, Twins, extended, join_layers
from lwqc.model.edit import Rewrite, replace_node
from lwqc.model.unused import RemoveUnused
from lwqc.model.weights import trace_weight, weight_shape
from lwqc.passes.build_joined import Builder


class MergeParallel(Rewrite):
    """Merge parallel linear layers: MatMul, Gemm, Conv with stored weights.

    nodes: where given, only layers among them.
    Matches: (1) layers whose results are added up, of the same operator, attributes and outputs;
        (2) layers that read one value, of the same operator and attributes.
    Rewrites to: (1) one layer over the channels of all, with the sum of their biases. What computes
        these channels in the same way from the same value becomes one as well: two parallel MLPs
        are one wider MLP. Channels that come from elsewhere are put together by a Concat.
        (2) one layer with the channels of all, and a Split behind it and behind the chain of twin
        nodes, such as biases, that follows. Two attentions get one QKV projection. The result is
        the same but for the order in which numbers are added.
    Refuses: weights that are shared, quantized, cast or not stored, biases that are not stored per
        channel, grouped convolutions in sums; `skipped` has the reasons by layer after a call. Sums
        of shapes that the model does not say are equal.
    """

    def __init__(self, nodes: Collection[ir.Node] | None = None) -> None:
        super().__init__()
        self._nodes = None if nodes is None else set(nodes)
        self.skipped: dict[str, str] = {}

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Merge all that can be merged."""
        graph, version = model.graph, model.opset_imports.get("", 1)
        self.skipped = {}
        layers = self._layers(graph)
        made = [_merge_sum(graph, root, layers) for root in list(sums(graph))]
        new = {node for nodes in made for node in nodes}
        RemoveUnused()(model)
        groups: dict[object, list[Layer]] = {}
        for found in self._layers(graph, new).values():
            if found.operand.groups == 1:
                groups.setdefault((found.operand.activation, found.key), []).append(found)
        several = [group for group in groups.values() if len(group) > 1]
        for group in several:
            _merge_readers(graph, group, version)
        RemoveUnused()(model)
        return ir.passes.PassResult(model, bool(new or several))

    def _layers(self, graph: ir.Graph, new: Collection[ir.Node] = ()) -> dict[ir.Node, Layer]:
        layers: dict[ir.Node, Layer] = {}
        for node in graph:
            if self._nodes is None or node in self._nodes or node in new:
                found = mergeable(node)
                if isinstance(found, Layer):
                    layers[node] = found
                elif found is not None:
                    self.skipped[node.outputs[0].name or ""] = found
        return layers


@dataclass
class _Cluster:
    """Layers of one sum whose inputs are the pieces of `whole`."""

    layers: tuple[Layer, ...]
    whole: Joined | ir.Value


def _merge_sum(graph: ir.Graph, root: ir.Node, layers: dict[ir.Node, Layer]) -> set[ir.Node]:
    """Merge layers that a sum adds up; returns the layers that are new."""
    rest = terms(root)
    groups: dict[object, list[Layer]] = {}
    for value in rest:
        producer = value.producer()
        found = layers.get(producer) if producer is not None else None
        if found is not None and found.operand.groups == 1 and len(list(value.uses())) == 1:
            groups.setdefault((found.key, found.operand.out), []).append(found)
    builder = Builder(graph, root)
    merged: list[ir.Value] = []
    for group in groups.values():
        clusters = _side_by_side(_clusters(group, layers.values()))
        chosen = [found for cluster in clusters for found in cluster.layers]
        if len(chosen) > 1:
            merged.append(_wide(builder, clusters))
            gone = {found.output for found in chosen}
            rest = [value for value in rest if value not in gone]
    if merged:
        _add_up(builder, root, rest, merged)
    return builder.layers


def _clusters(group: Sequence[Layer], layers: Iterable[Layer]) -> list[_Cluster]:
    """Layers whose inputs can be computed as one go together."""
    twins = Twins(layers)
    clusters: list[_Cluster] = []
    for found in group:
        if any(found.operand.activation in _read(c) for c in clusters):
            continue  # a layer that reads the same value: not a matter of its input channels
        for cluster in clusters:
            several = (*cluster.layers, found)
            values = tuple(a.operand.activation for a in several)
            whole = twins.whole(values, found.axis)
            if whole is not None and _owned(whole, several):
                cluster.layers, cluster.whole = several, whole
                break
        else:
            clusters.append(_Cluster((found,), found.operand.activation))
    return clusters


def _read(cluster: _Cluster) -> set[ir.Value]:
    return {found.operand.activation for found in cluster.layers}


def _owned(whole: Joined | ir.Value, layers: Iterable[Layer]) -> bool:
    """Whether nothing but the layers reads what would be replaced."""
    if not isinstance(whole, Joined):
        return True
    replaced = whole.replaced()
    allowed = replaced | {found.node for found in layers}
    values = (v for node in replaced for v in node.outputs)
    return all(not v.is_graph_output() and allowed.issuperset(v.consumers()) for v in values)


def _side_by_side(clusters: Sequence[_Cluster]) -> list[_Cluster]:
    """The first cluster and those whose inputs can be put beside its own."""
    first = clusters[0].layers[0]
    return [
        c
        for i, c in enumerate(clusters)
        if not i
        or known_equal(c.layers[0].operand.activation, first.operand.activation, first.axis)
    ]


def _wide(builder: Builder, clusters: Sequence[_Cluster]) -> ir.Value:
    """One layer over the input channels of all clusters."""
    layers = [found for cluster in clusters for found in cluster.layers]
    first = layers[0]
    wholes = [builder.value(cluster.whole) for cluster in clusters]
    data = wholes[0] if len(wholes) == 1 else builder.concat(wholes, first.axis)
    weights = tuple(found.operand.weight for found in layers)
    inputs = [data, builder.stored(Stacked(weights, 1 - first.operand.out_axis))]
    biases = tuple(found.bias for found in layers if found.bias is not None)
    if biases:
        inputs.append(builder.stored(Stacked(biases, None)))
    return builder.layer(first.node, inputs)


def _add_up(
    builder: Builder, root: ir.Node, rest: Sequence[ir.Value], merged: Sequence[ir.Value]
) -> None:
    """Let the sum be that of the merged layers, the stored vectors and the rest."""
    stored = [v for v in rest if trace_weight(v) is not None]
    computed = [v for v in rest if trace_weight(v) is None]
    total = builder.add([*merged, *_totals(builder, stored)])
    replace_node(root, builder.add([*computed, total]))


def _totals(builder: Builder, stored: Sequence[ir.Value]) -> list[ir.Value]:
    """Stored vectors, those of one shape added up."""
    groups: dict[object, list[ir.Value]] = {}
    for value in stored:
        weight = trace_weight(value)
        assert weight is not None
        key = value if weight.steps else (weight_shape(weight), weight.tensor.dtype)
        groups.setdefault(key, []).append(value)
    found = []
    for values in groups.values():
        weights = tuple(w for w in (trace_weight(v) for v in values) if w is not None)
        found.append(values[0] if len(values) == 1 else builder.stored(Stacked(weights, None)))
    return found


def _merge_readers(graph: ir.Graph, group: Sequence[Layer], version: int) -> None:
    """One layer for those that read the same value, and a Split."""
    joined = join_layers(group)
    assert joined is not None
    joined = extended(joined)
    builder = Builder(graph, group[0].node)
    pieces = builder.split(builder.value(joined), joined, version)
    for node, piece in zip(joined.members, pieces, strict=True):
        replace_node(node, piece)
