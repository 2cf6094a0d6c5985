"""Static 8-bit quantization of convolution networks as QuantizeLinear/DequantizeLinear pairs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from lwqc.graph.integer_flow import integer_flow
from lwqc.graph.sites import Site
from lwqc.model.edit import add_constant, add_initializer, insert_before
from lwqc.model.names import unique_name
from lwqc.passes.base import Pass
from lwqc.passes.context import Context
from lwqc.passes.encoded_weights import EncodedWeights
from lwqc.passes.hard_gate import find_hard_gates, least_useful, lower_hard_gate
from lwqc.passes.integer_matmul import signed_codes
from lwqc.passes.number_codes import encode_numbers
from lwqc.plans.plan import ActivationRange, SiteEntry
from lwqc.quant.activation import activation_grid


@dataclass(frozen=True, eq=False)
class InsertQdq(Pass):
    """Quantize convolutions and the operators between them.

    Matches: Conv sites with a per-channel entry of 7 or 8 bits and static activations.
    Rewrites to: DequantizeLinear of int8 weights (axis 0), and a QuantizeLinear/DequantizeLinear
    pair on every tensor that `integer_flow` finds; all readers of such a tensor see the pair.
    Refuses (leaves float) convolutions that `integer_flow` refuses.
    """

    exact: ClassVar[bool] = False
    planned: ClassVar[bool] = True
    entries: Mapping[str, SiteEntry]
    ranges: Mapping[str, ActivationRange]
    weights: EncodedWeights
    signed: bool = False

    def rewrite(self, model: ir.Model, ctx: Context) -> int:
        """Rewrite every convolution that has an entry."""
        graph = model.graph
        sites = [s for s in ctx.sites.sites if s.name in self.entries]
        if not sites:
            return 0
        flow = integer_flow(graph, sites)
        sites = [s for s in sites if s.name not in flow.refused]
        for site in sites:
            self._quantize_weight(graph, site)
        self._insert_pairs(graph, flow.tensors)
        return len(sites)

    def _insert_pairs(self, graph: ir.Graph, tensors: Mapping[str, str]) -> None:
        gates = find_hard_gates(graph, tensors)
        made = {gate.outputs[0] for gate in gates}
        encode_numbers(graph, tensors, signed=self.signed)
        values = {v.name: v for node in graph for v in node.outputs}
        values |= {v.name: v for v in graph.inputs}
        lowest = {gate.inputs[0].name: least_useful(gate) for gate in gates if gate.inputs[0]}
        grids: dict[str, tuple[ir.Value, ir.Value]] = {}
        for name, owner in tensors.items():
            if values[name] in made:  # its grid is that of the gate
                continue
            if owner not in grids:
                grids[owner] = self._grid(graph, owner, lowest.get(owner))
            _insert_pair(graph, values[name], *grids[owner])
        for gate in gates:
            lower_hard_gate(graph, gate, signed=self.signed)

    def _quantize_weight(self, graph: ir.Graph, site: Site) -> None:
        entry = self.entries[site.name]
        shape = site.shape
        codes = self.weights.lazy(
            site.name,
            entry,
            lambda e: signed_codes(e).reshape(shape),
            name=f"{site.name}_i8",
            codes=True,
            dtype=ir.DataType.INT8,
            shape=shape,
        )
        scale = self.weights.lazy(
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

    def _grid(self, graph: ir.Graph, name: str, lowest: float | None) -> tuple[ir.Value, ir.Value]:
        """lowest: value below which nothing makes a difference, None for none."""
        observed = self.ranges[name]
        low = observed.low if lowest is None else max(observed.low, lowest)
        grid = activation_grid(low, max(low, observed.high))
        scale = add_constant(graph, f"{name}/u8_scale", np.float32(grid.scale))
        return scale, add_constant(graph, f"{name}/u8_zero", grid.stored_zero(signed=self.signed))


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
