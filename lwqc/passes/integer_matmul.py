"""8-bit weights and activations for MatMul and Gemm: MatMulIntegerToFloat."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from lwqc.graph.sites import Site, Use
from lwqc.model.edit import add_constant, add_initializer, insert_before, replace_node
from lwqc.passes.base import Pass
from lwqc.passes.block_quantize import MICROSOFT
from lwqc.passes.context import Context
from lwqc.passes.encoded_weights import EncodedWeights
from lwqc.passes.grained_weights import from_grained
from lwqc.passes.unpack_builder import UnpackBuilder
from lwqc.plans.plan import ActivationRange, SiteEntry
from lwqc.quant.activation import activation_grid
from lwqc.quant.grid import Encoded


@dataclass(frozen=True, eq=False)
class IntegerMatMul(Pass):
    """Multiply 8-bit activations with 8-bit weights.

    Matches: sites used by MatMul and Gemm with a per-channel entry of 7 or 8 bits, or a grained
    one, which becomes such integers at load, and dynamic or static activations.
    Rewrites to: DynamicQuantizeLinear, or QuantizeLinear with the calibrated range, once per
    activation tensor, and com.microsoft MatMulIntegerToFloat with signed weights [K, N]. The
    runtime fuses a DynamicQuantizeLinear with a single reader into DynamicQuantizeMatMul.
    """

    exact: ClassVar[bool] = False
    planned: ClassVar[bool] = True
    entries: Mapping[str, SiteEntry]
    ranges: Mapping[str, ActivationRange]
    weights: EncodedWeights
    signed: bool = False
    _quantized: dict[tuple[ir.Value, str], tuple[ir.Value, ...]] = field(
        default_factory=dict, init=False
    )

    def rewrite(self, model: ir.Model, ctx: Context) -> int:
        """Rewrite every site that has an entry."""
        if not self.entries:
            return 0
        self._quantized.clear()
        build = UnpackBuilder(model.graph)
        stored = [  # of all before any is rewritten: the first node is what is built in front of
            (site, self._stored(model.graph, build, site, self.entries[site.name]))
            for site in ctx.sites.sites
            if site.name in self.entries
        ]
        for site, (codes, scale) in stored:
            for use in site.uses:
                self._rewrite(model.graph, use, self.entries[site.name], codes, scale)
        if stored:
            model.opset_imports.setdefault(MICROSOFT, 1)
        return len(stored)

    def _stored(
        self, graph: ir.Graph, build: UnpackBuilder, site: Site, entry: SiteEntry
    ) -> tuple[ir.Value, ir.Value]:
        if entry.weight.grained:
            return from_grained(graph, build, site, entry, self.weights)
        return self._store(graph, site, entry)

    def _store(self, graph: ir.Graph, site: Site, entry: SiteEntry) -> tuple[ir.Value, ir.Value]:
        codes = self.weights.lazy(
            site.name,
            entry,
            lambda e: signed_codes(e).T,
            name=f"{site.name}_i8",
            codes=True,
            dtype=ir.DataType.INT8,
            shape=(site.k, site.n),
        )
        scale = self.weights.lazy(
            site.name,
            entry,
            lambda e: e.scale[:, 0],
            name=f"{site.name}_scale",
            dtype=ir.DataType.FLOAT,
            shape=(site.n,),
        )
        return add_initializer(graph, codes), add_initializer(graph, scale)

    def _rewrite(
        self, graph: ir.Graph, use: Use, entry: SiteEntry, codes: ir.Value, scale: ir.Value
    ) -> None:
        node = use.node
        quantized, a_scale, a_zero = self._activation(graph, use, entry)
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        (output,) = insert_before(
            node,
            "MatMulIntegerToFloat",
            [quantized, codes, a_scale, scale, a_zero],
            [f"{node.outputs[0].name}/integer"],
            domain=MICROSOFT,
        )
        if bias is not None:
            (output,) = insert_before(node, "Add", [output, bias], [f"{node.outputs[0].name}/bias"])
        replace_node(node, output)

    def _activation(
        self, graph: ir.Graph, use: Use, entry: SiteEntry
    ) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Quantized activation, its scale and zero point; one node for all readers in a graph."""
        value = use.activation
        if value is None:
            raise ValueError(f"{use.node.name} has no activation")
        key = (value, f"{entry.activation}{id(use.node.graph)}")
        if key not in self._quantized:
            make = _dynamic if entry.activation == "dynamic" else self._static
            others = sum(known is value for known, _ in self._quantized)
            name = f"{value.name}/a8" + (f"_{others}" if others else "")
            self._quantized[key] = _codes_of(value) or make(graph, use.node, value, name)
        quantized, scale, zero = self._quantized[key]
        return quantized, scale, zero

    def _static(
        self, graph: ir.Graph, node: ir.Node, value: ir.Value, name: str
    ) -> tuple[ir.Value, ...]:
        observed = self.ranges[value.name or ""]
        grid = activation_grid(observed.low, observed.high)
        scale = add_constant(graph, f"{name}_scale", np.float32(grid.scale))
        zero = add_constant(graph, f"{name}_zero", grid.stored_zero(signed=self.signed))
        (quantized,) = insert_before(node, "QuantizeLinear", [value, scale, zero], [name])
        return quantized, scale, zero


_EIGHT = (ir.DataType.UINT8, ir.DataType.INT8)


def _codes_of(value: ir.Value) -> tuple[ir.Value, ...] | None:
    """Codes, scale and zero point of a tensor that was dequantized from 8 bits just before."""
    node = value.producer()
    if node is None or node.op_type != "DequantizeLinear" or len(node.inputs) != 3:
        return None
    codes, scale, zero = node.inputs
    if codes is None or scale is None or zero is None or zero.dtype not in _EIGHT:
        return None
    return (codes, scale, zero) if zero.shape is not None and not len(zero.shape) else None


def _dynamic(graph: ir.Graph, node: ir.Node, value: ir.Value, name: str) -> tuple[ir.Value, ...]:
    outputs = [name, f"{name}_scale", f"{name}_zero"]
    return insert_before(node, "DynamicQuantizeLinear", [value], outputs)


def signed_codes(encoded: Encoded) -> np.ndarray[tuple[int, ...], np.dtype[np.int8]]:
    """Codes of a symmetric 8-bit weight as int8 [N, K]."""
    codes = encoded.codes.reshape(len(encoded.codes), -1)[:, : encoded.k]
    return (codes ^ np.uint8(128)).view(np.int8)
