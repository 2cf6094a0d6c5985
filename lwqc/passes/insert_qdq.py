"""Static 8-bit quantization of convolution networks as QuantizeLinear/DequantizeLinear pairs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from lwqc.graph.integer_flow import integer_flow
from lwqc.graph.sites import Site, find_sites
from lwqc.model.edit import Rewrite, add_constant, add_initializer, insert_before
from lwqc.model.names import unique_name
from lwqc.passes.encoded_weights import EncodedWeights
from lwqc.passes.integer_matmul import signed_codes
from lwqc.plans.plan import ActivationRange, SiteEntry
from lwqc.quant.activation import activation_grid


class InsertQdq(Rewrite):
    """Quantize convolutions and the operators between them.

    Matches: Conv sites with a per-channel entry of 7 or 8 bits and static activations.
    Rewrites to: DequantizeLinear of int8 weights (axis 0), and a QuantizeLinear/DequantizeLinear
    pair on every tensor that `integer_flow` finds; all readers of such a tensor see the pair.
    Refuses (leaves float) convolutions that `integer_flow` refuses.
    """

    def __init__(
        self,
        entries: Mapping[str, SiteEntry],
        ranges: Mapping[str, ActivationRange],
        weights: EncodedWeights,
        *,
        signed: bool = False,
    ) -> None:
        """signed: activations are int8."""
        super().__init__()
        self._signed = signed
        self._entries = entries
        self._ranges = ranges
        self._weights = weights

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every convolution that has an entry."""
        graph = model.graph
        sites = [s for s in find_sites(model).sites if s.name in self._entries]
        if not sites:
            return ir.passes.PassResult(model, False)
        flow = integer_flow(graph, sites)
        sites = [s for s in sites if s.name not in flow.refused]
        for site in sites:
            self._quantize_weight(graph, site)
        values = {v.name: v for node in graph for v in node.outputs}
        values |= {v.name: v for v in graph.inputs}
        grids: dict[str, tuple[ir.Value, ir.Value]] = {}
        for name, owner in flow.tensors.items():
            if owner not in grids:
                grids[owner] = self._grid(graph, owner)
            _insert_pair(graph, values[name], *grids[owner])
        return ir.passes.PassResult(model, bool(sites))

    def _quantize_weight(self, graph: ir.Graph, site: Site) -> None:
        entry = self._entries[site.name]
        shape = site.shape
        codes = self._weights.lazy(
            site.name,
            entry,
            lambda e: signed_codes(e).reshape(shape),
            name=f"{site.name}_i8",
            codes=True,
            dtype=ir.DataType.INT8,
            shape=shape,
        )
        scale = self._weights.lazy(
            site.name,
            entry,
            lambda e: e.scale[:, 0],
            name=f"{site.name}_scale",
            dtype=ir.DataType.FLOAT,
            shape=(site.n,),
        )
        zero = add_constant(graph, f"{site.name}_zero", np.zeros(site.n, np.int8))
        stored = [add_initializer(graph, codes), add_initializer(graph, scale), zero]
        for use in site.uses:
            name = f"{use.node.outputs[0].name}/weight"
            (weight,) = insert_before(use.node, "DequantizeLinear", stored, [name], {"axis": 0})
            use.node.replace_input_with(use.index, weight)

    def _grid(self, graph: ir.Graph, name: str) -> tuple[ir.Value, ir.Value]:
        observed = self._ranges[name]
        grid = activation_grid(observed.low, observed.high)
        scale = add_constant(graph, f"{name}/u8_scale", np.float32(grid.scale))
        return scale, add_constant(graph, f"{name}/u8_zero", grid.stored_zero(signed=self._signed))


def _insert_pair(graph: ir.Graph, value: ir.Value, scale: ir.Value, zero: ir.Value) -> None:
    users = list(value.uses())
    result = add_pair(graph, value, scale, zero, f"{value.name}/u8")
    for use in users:
        use.node.replace_input_with(use.idx, result)


def add_pair(
    graph: ir.Graph, value: ir.Value, scale: ir.Value, zero: ir.Value, name: str
) -> ir.Value:
    """Quantize and dequantize a value right behind its producer; nothing reads the result yet.

    name: of the codes.
    """
    name, after = unique_name(graph, name), unique_name(graph, f"{name}_float")
    quantize = ir.node("QuantizeLinear", [value, scale, zero], name=f"{name}/q")
    codes = quantize.outputs[0]
    codes.name, codes.shape, codes.type = name, value.shape, zero.type
    dequantize = ir.node("DequantizeLinear", [codes, scale, zero], name=f"{name}/dq")
    result = dequantize.outputs[0]
    result.name, result.shape, result.type = after, value.shape, value.type
    producer = value.producer()
    if producer is None:
        graph.insert_before(graph[0], [quantize, dequantize])
    else:
        graph.insert_after(producer, [quantize, dequantize])
    return result
