"""Float branches beside quantized layers: y = quantized(x) + side(x), see `quant.side`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from lwqc.graph.sites import BOTH_WAYS, Site, Use, find_sites
from lwqc.model.edit import Rewrite, add_initializer, float_type, insert_before
from lwqc.model.names import unique_name
from lwqc.passes.encoded_weights import EncodedWeights, stored_parts
from lwqc.plans.plan import SiteEntry

_OPERATORS = frozenset({"MatMul", "Gemm"})
_COLUMNS_OPSET = 11  # Gather and Concat along axis -1
# Largest weights that float16 holds to its full precision, with room for what columns take up.
_HALF_RANGE = (2.0**-14, 2.0**12)


def side_refusal(site: Site, entry: SiteEntry, opset: int) -> str:
    """Why a site cannot have the entry's branch, or "" if it can or if there is none."""
    if not entry.has_side:
        return ""
    if others := site.ops - _OPERATORS:
        return f"a side branch needs MatMul or Gemm, not {'+'.join(sorted(others))}"
    if site.both_ways:
        return BOTH_WAYS
    if entry.rank >= min(site.n, site.k):
        return f"a side branch of rank {entry.rank} is no smaller than [{site.n}, {site.k}]"
    if entry.columns >= site.k:
        return f"{entry.columns} columns in float leave none of {site.k} to quantize"
    if entry.columns and opset < _COLUMNS_OPSET:
        return f"columns in float need opset {_COLUMNS_OPSET}, the model has {opset}"
    return ""


@dataclass(frozen=True)
class _Stored:
    """Values of one site's branch in the activation's type; None for a part it does not have."""

    columns: ir.Value | None
    down: ir.Value | None
    up: ir.Value


class SideBranch(Rewrite):
    """Give quantized layers a branch in float.

    Matches: every use of sites whose entry has a rank or columns; `side_refusal` says which sites
    can have them. The operator itself is left for the passes that quantize it.
    Rewrites to: Sum(operator(x), MatMul(Concat(Gather(x, columns), MatMul(x, down)), up)), without
    Gather or inner MatMul where there are no columns or no rank. The factors are float16 (float32
    for weights out of its range) and cast once per site, which the runtime folds at load. Sum and
    not Add, for the reason that `ResidualSum` gives.
    """

    def __init__(self, entries: Mapping[str, SiteEntry], weights: EncodedWeights) -> None:
        super().__init__()
        self._entries = {name: entry for name, entry in entries.items() if entry.has_side}
        self._weights = weights

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every use of every site that has a branch."""
        if not self._entries:
            return ir.passes.PassResult(model, False)
        sites = [s for s in find_sites(model).sites if s.name in self._entries]
        for site in sites:
            stored = self._store(model.graph, site, self._entries[site.name])
            for use in site.uses:
                _add(use, stored)
        return ir.passes.PassResult(model, bool(sites))

    def _store(self, graph: ir.Graph, site: Site, entry: SiteEntry) -> _Stored:
        count, rank = entry.columns, entry.rank
        stored = self._stored_type(site)
        number = stored.numpy()
        make = self._weights.lazy_side
        name = f"{site.name}_side"
        columns = down = None
        if count:
            columns = add_initializer(
                graph,
                make(
                    site.name,
                    entry,
                    lambda s: s.columns,
                    name=f"{name}_columns",
                    dtype=ir.DataType.INT32,
                    shape=(count,),
                ),
            )
        if rank:
            down = make(
                site.name,
                entry,
                lambda s: s.down.astype(number),
                name=f"{name}_down",
                dtype=stored,
                shape=(site.k, rank),
            )
        up = make(
            site.name,
            entry,
            lambda s: s.up.astype(number),
            name=f"{name}_up",
            dtype=stored,
            shape=(count + rank, site.n),
        )
        wanted = float_type(site.uses[0].activation)
        return _Stored(
            columns,
            _cast(graph, down, wanted) if down is not None else None,
            _cast(graph, up, wanted),
        )

    def _stored_type(self, site: Site) -> ir.DataType:
        weight = self._weights.weight(site.name)
        peak = max(float(weight.max()), -float(weight.min()))
        fits = peak == 0 or _HALF_RANGE[0] <= peak <= _HALF_RANGE[1]
        return ir.DataType.FLOAT16 if fits else ir.DataType.FLOAT


def _cast(graph: ir.Graph, tensor: ir.TensorProtocol, wanted: ir.DataType) -> ir.Value:
    """Store a tensor; its value in the wanted type, computed ahead of the whole graph."""
    value = add_initializer(graph, tensor)
    if value.dtype == wanted:
        return value
    name = f"{value.name}/cast"
    return insert_before(graph[0], "Cast", [value], [name], {"to": int(wanted)})[0]


def _add(use: Use, stored: _Stored) -> None:
    """Put Sum(y, side) in the place of y, under its name and in its role as a graph output."""
    node, y = use.node, use.node.outputs[0]
    graph, name = node.graph, y.name
    if not isinstance(graph, ir.Graph):
        raise ValueError(f"{node.name} is in no graph")
    side = _side(use, stored)
    join = ir.node("Sum", [y, side], name=f"{side.name}/Sum")
    total = join.outputs[0]
    graph.insert_after(node, join)
    total.shape, total.type = y.shape, y.type
    total.metadata_props.update(y.metadata_props)
    y.replace_all_uses_with(total, replace_graph_outputs=True)
    join.replace_input_with(0, y)
    y.name, total.name = unique_name(graph, f"{name}/quantized"), name


def _side(use: Use, stored: _Stored) -> ir.Value:
    """side(x), computed in front of the operator."""
    node, x, name = use.node, use.activation, f"{use.node.outputs[0].name}/side"
    parts: list[ir.Value] = []
    if stored.columns is not None:
        inputs = [x, stored.columns]
        parts += insert_before(node, "Gather", inputs, [f"{name}/columns"], {"axis": -1})
    if stored.down is not None:
        parts += insert_before(node, "MatMul", [x, stored.down], [f"{name}/down"])
    if len(parts) > 1:
        parts = list(insert_before(node, "Concat", parts, [f"{name}/parts"], {"axis": -1}))
    return insert_before(node, "MatMul", [parts[0], stored.up], [name])[0]


def keep_together(model: ir.Model, sites: Iterable[str]) -> None:
    """Order initializers so that a site's codes and side factors are written near one another.

    They are encoded together, and a cache of bounded size may not hold them for long.
    """
    parts: dict[str, list[ir.Value]] = {}
    for value, part in stored_parts(model):
        parts.setdefault(part.site, []).append(value)
    for value in (v for site in sites for v in parts.get(site, ())):
        model.graph.register_initializer(model.graph.initializers.pop(value.name or ""))


__all__ = ["SideBranch", "keep_together", "side_refusal"]
