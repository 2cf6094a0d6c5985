"""Low rank without training: two thin products in place of one, beside pruned channels.

    python -m benchmarks.low_rank [NAME ...] [--shares 0.9,0.8,0.7,0.5]

Every matrix of a MatMul or Gemm and every kernel of a convolution without groups, [N, K], may
become two: that of rank r (a convolution of the same size with r channels) and one behind it
(1 x 1) whose product is nearest to it at the layer's output on the calibration data
(`quant.low_rank`).

one share: r such that r (N + K) is the same share of N K in each layer. by layer: each direction of
each layer has a price, what it adds to the loss of the model's outputs per multiply-accumulate, and
the cheapest go first; a layer's part in that loss is measured with half of its rank alone. Layers
whose two products would cost as much as one stay. obspa: channels removed for the same share of
the multiply-accumulates of the model. All in float, no training; `macs` is what is left of the
whole model's. blocks: of four times four parts of each layer's matrix, each nearest to its own by a
rank of a quarter (Monarch, arXiv 2204.00595, with more than one direction per block), as many
multiply-accumulates in each layer as by `one share`; its weights are multiplied out, so that it has
no time. The metric is taken on held-back data; `time` is the share of the original's, the
median of runs in turns on one batch of the calibration data.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

import lwqc
from benchmarks.door import processor
from benchmarks.weights import MODELS as FORMATTED
from benchmarks.weights import ROOT
from lwqc.compile.version import Version
from lwqc.decide.compress import open_version
from lwqc.graph.cost import node_costs
from lwqc.graph.shapes import shapes_at
from lwqc.graph.sites import Site, sites_by_name
from lwqc.model.edit import add_constant, insert_before, replace_stored
from lwqc.quant.low_rank import low_rank
from lwqc.runtime.served import Served, relative_times
from lwqc.runtime.session import Session

MODELS = {
    **FORMATTED,
    "glyph_mobilenet": ("models/glyph_mobilenet.onnx", *FORMATTED["glyph_resnet"][1:]),
}
SHARES = (0.9, 0.8, 0.7, 0.5)
OPERATORS = frozenset({"MatMul", "Gemm", "Conv"})
_BLOCKS = 4
_EXACT = 1e-9  # of the energy: half of the rank loses nothing, and says nothing of the layer
Float = NDArray[np.float64]
Ranks = Mapping[str, int]


@dataclass(frozen=True)
class Layer:
    """A site that may be factored. macs: of the whole layer. errors: by rank 0.., at its output."""

    site: Site
    weight: Float
    gram: Float
    macs: int
    errors: Float

    @property
    def per_rank(self) -> float:
        """Multiply-accumulates of one direction."""
        n, k = self.weight.shape
        return self.macs * (n + k) / (n * k)

    @property
    def most(self) -> int:
        """The largest rank that costs less than the layer."""
        n, k = self.weight.shape
        return (n * k - 1) // (n + k)


def layers_of(work: Version) -> dict[str, Layer]:
    """What can be factored, by site."""
    found = {}
    sizes = {name: array.shape for name, array in work.job.data.fit.first().items()}
    costs = {
        c.name: c.macs or 0 for c in node_costs(work.model.graph, shapes_at(work.model, sizes))
    }
    for name, site in sites_by_name(work.model).items():
        if not site.ops <= OPERATORS or len(site.uses) > 1 or site.groups > 1:
            continue
        if site.weight.steps or site.in_body or work.grams.reason(name):
            continue
        weight = np.asarray(work.weights.weight(name), np.float64)
        gram = work.grams(name)
        assert gram is not None
        energy = np.linalg.eigvalsh(weight @ gram[0] @ weight.T)[::-1]
        left = np.maximum(energy.sum() - np.concatenate([[0.0], np.cumsum(energy)]), 0)
        macs = costs[site.uses[0].node.name or ""]
        layer = Layer(site, weight, gram[0], macs, left / energy.sum())
        if layer.most >= 2:  # else there is nothing to choose
            found[name] = layer
    return found


def factored(model: ir.Model, layers: Mapping[str, Layer], ranks: Ranks) -> ir.Model:
    """A copy in which layers are two products of those ranks."""
    copy = model.clone()
    sites = sites_by_name(copy)
    for name, rank in ranks.items():
        left, right = low_rank(layers[name].weight, rank, layers[name].gram)
        _split(sites[name], left.astype(np.float32), right.astype(np.float32))
    return copy


def _split(site: Site, left: NDArray[Any], right: NDArray[Any]) -> None:
    """Two nodes in place of the one: [r, K] first, then [N, r]."""
    (use,) = site.uses
    node, graph = use.node, use.node.graph
    assert isinstance(graph, ir.Graph)
    first, then = right, left
    if node.op_type == "Conv":
        first, then = (
            right.reshape(-1, *site.shape[1:]),
            left[(..., *[None] * (len(site.shape) - 2))],
        )
    elif use.transposed:
        first, then = right.T, left.T
    stored = [
        add_constant(graph, f"{site.name}/{part}", np.ascontiguousarray(array))
        for part, array in (("in", first), ("out", then))
    ]
    own = dict(node.attributes.items())
    kept = {"transB": own["transB"].as_int()} if "transB" in own else {}
    operand = node.inputs[1 - use.index]
    assert operand is not None
    swapped = use.index == 0  # the weight comes first: W x
    inputs = [stored[0], operand] if swapped else [operand, stored[0]]
    (thin,) = insert_before(node, node.op_type, inputs, [f"{site.name}/thin"], kept)
    inner = thin.producer()
    assert inner is not None
    if node.op_type == "Conv":
        for key, attribute in own.items():
            inner.attributes[key] = attribute
            if key != "group":
                node.attributes.pop(key)
    node.replace_input_with(1 - use.index, thin)
    node.replace_input_with(use.index, stored[1])


def in_blocks(model: ir.Model, layers: Mapping[str, Layer], share: float) -> ir.Model:
    """A copy in which each layer is what two products by blocks would give, multiplied out."""
    copy = model.clone()
    sites = sites_by_name(copy)
    for name, layer in layers.items():
        n, k = layer.weight.shape
        rank = int(share * n * k / (_BLOCKS * (n + k)))
        outputs, inputs = (np.array_split(np.arange(size), _BLOCKS) for size in (n, k))
        if rank < 1 or min(*map(len, outputs), *map(len, inputs)) <= rank:
            continue
        found = np.empty_like(layer.weight)
        for rows in outputs:
            for columns in inputs:
                gram = layer.gram[np.ix_(columns, columns)]
                left, right = low_rank(layer.weight[np.ix_(rows, columns)], rank, gram)
                found[np.ix_(rows, columns)] = left @ right
        _store(sites[name], found.astype(np.float32))
    return copy


def _store(site: Site, matrix: NDArray[Any]) -> None:
    array = matrix.reshape(site.shape) if site.op == "Conv" else matrix
    if site.uses[0].transposed:
        array = array.T
    replace_stored(site.weight.source, ir.tensor(np.ascontiguousarray(array), name=site.name))


def one_share(layers: Mapping[str, Layer], share: float) -> Ranks:
    """Ranks that leave that share of each layer."""
    wanted = {
        name: max(1, int(share * layer.weight.size / sum(layer.weight.shape)))
        for name, layer in layers.items()
    }
    return {name: rank for name, rank in wanted.items() if rank <= layers[name].most}


def by_layer(layers: Mapping[str, Layer], parts: Mapping[str, float], spare: float) -> Ranks:
    """Ranks that save so many multiply-accumulates for the least loss, by one price for all.

    parts: what the loss of the outputs is, of each layer, over the error at its output.
    """

    def at(price: float) -> Ranks:
        found = {}
        for name, layer in layers.items():
            gains = -np.diff(layer.errors) * parts[name] / layer.per_rank
            rank = max(1, int((gains >= price).sum()))
            if rank <= layer.most:
                found[name] = rank
        return found

    def saved(ranks: Ranks) -> float:
        return sum(layers[n].macs - rank * layers[n].per_rank for n, rank in ranks.items())

    low, high = -40.0, 0.0  # exponents of ten
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if saved(at(10**middle)) >= spare else (middle, high)
    return at(10**high)


def parts_of(work: Version, layers: Mapping[str, Layer]) -> dict[str, float]:
    """Loss of the outputs with half of one layer's rank, over the error at its output."""
    found, data = {}, list(work.job.data.fit)
    for name, layer in layers.items():
        half = layer.most // 2
        losses = lwqc.verify(work.model, factored(work.model, layers, {name: half}), data=data)
        drop = max(loss.drop for loss in losses.values())
        if layer.errors[half] > _EXACT:
            found[name] = drop / float(layer.errors[half])
    usual = float(np.median(list(found.values())))
    return {name: found.get(name, usual) for name in layers}


def measured(name: str, shares: list[float]) -> Iterator[dict[str, Any]]:
    """Rows of a model."""
    file, data, metric = MODELS[name]
    work = open_version(ROOT / file, data=data, metric=metric)
    assert work.job.metric is not None
    layers = layers_of(work)
    parts = parts_of(work, layers)
    whole, feeds = work.original.macs, work.job.data.fit.first()
    inside = sum(layer.macs for layer in layers.values())
    yield {"model": name, "layers": len(layers), "of the macs": round(inside / whole, 3)}
    for share in shares:
        ways = {
            "one share": partial(one_share, layers, 1 - (1 - share) * whole / inside),
            "by layer": partial(by_layer, layers, parts, (1 - share) * whole),
        }
        made: dict[str, ir.Model] = {"original": work.model}
        errors: dict[str, float] = {}
        for way, ranks_of in ways.items():
            ranks = ranks_of()
            made[way] = factored(work.model, layers, ranks)
            errors[way] = float(np.mean([layers[n].errors[r] for n, r in ranks.items()]))
        made["obspa"] = lwqc.prune(work.model, recipe="obspa", ratio=1 - share, data=data).model
        blocks = in_blocks(work.model, layers, 1 - (1 - share) * whole / inside)
        found = work.job.metric(Session(blocks, label="blocks"))
        yield {"model": name, "share": share, "way": "blocks", "metric": round(found, 4)}
        sessions = {way: Session(model, label=way) for way, model in made.items()}
        timed = relative_times(list(sessions.values()), [Served("", feeds)], 4.0)
        for (way, session), times in zip(sessions.items(), timed, strict=True):
            yield {
                "model": name,
                "share": share,
                "way": way,
                "macs": round(work.job.macs(made[way]) / whole, 3),
                "error": round(errors.get(way, 0.0), 4),
                "metric": round(work.job.metric(session), 4),
                "time": round(times[0], 3),
            }


def main() -> None:
    """Print rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "names", nargs="*", default=["glyph_vit", "glyph_resnet", "glyph_mobilenet"]
    )
    parser.add_argument("--shares", default=",".join(map(str, SHARES)))
    chosen = parser.parse_args()
    print(processor())
    for name in chosen.names:
        for row in measured(name, [float(share) for share in chosen.shares.split(",")]):
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
