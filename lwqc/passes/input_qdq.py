"""Explicit symmetric quantization of inputs and weights, as TensorRT wants it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.errors import InputError
from lwqc.graph.quantized_inputs import quantized_inputs
from lwqc.graph.sites import Site, Use
from lwqc.model.edit import add_constant, add_initializer, insert_before
from lwqc.passes.base import Pass
from lwqc.passes.context import Context
from lwqc.passes.encoded_weights import EncodedWeights
from lwqc.passes.insert_qdq import add_pair
from lwqc.passes.integer_matmul import signed_codes
from lwqc.plans.plan import ActivationRange, SiteEntry
from lwqc.quant.activation import activation_grid, symmetric_scale
from lwqc.quant.codebook import FP8_MAX
from lwqc.quant.grid import Encoded
from lwqc.quant.stored_codes import with_positive_scales


@dataclass(frozen=True, eq=False)
class InputQdq(Pass):
    """Quantize the inputs and weights of convolutions and products, not their outputs.

    Matches: sites with a symmetric per-channel 8-bit entry, int8 or float8, and static activations.
    Rewrites to: DequantizeLinear of int8 weights, positive scales per output channel; one
        QuantizeLinear and DequantizeLinear with zero point 0 per tensor, shared by the operands
        that `quantized_inputs` names. Other readers see the tensor itself. Not `symmetric`: the
        codes of tensors are uint8, with zero points.
    Leaves alone: sites that `quantized_inputs` refuses; optional tensors without a range.
    """

    exact: ClassVar[bool] = False
    planned: ClassVar[bool] = True
    entries: Mapping[str, SiteEntry]
    ranges: Mapping[str, ActivationRange]
    weights: EncodedWeights
    sizes: Mapping[str, tuple[int, ...]]
    symmetric: bool = True

    def rewrite(self, model: ir.Model, ctx: Context) -> int:
        """Rewrite every site that has an entry."""
        _ = self.fp8  # entries of both kinds are refused before anything changes
        graph = model.graph
        sites = [s for s in ctx.sites.sites if s.name in self.entries]
        found = quantized_inputs(graph, sites, self.sizes)
        for site in sites:
            if site.name not in found.refused:
                self._quantize_weight(graph, site)
        values = {v.name: v for node in graph for v in node.outputs}
        values |= {v.name: v for v in graph.inputs}
        for name, reads in found.reads.items():
            if name in self.ranges and name in values:
                pair = self._pair(graph, values[name])
                for node, index in reads:
                    node.replace_input_with(index, pair)
        return len(found.reads)

    @property
    def fp8(self) -> bool:
        """Whether activations are float8. Raises InputError where some are."""
        kinds = {e.weight.kind for e in self.entries.values()}
        if len(kinds) > 1:
            raise InputError("a plan for TensorRT cannot mix int8 and float8 activations")
        return kinds == {"fp8"}

    def _quantize_weight(self, graph: ir.Graph, site: Site) -> None:
        made: dict[bool, list[ir.Value]] = {}
        entry = self.entries[site.name]
        scale = add_initializer(
            graph,
            self.weights.lazy(
                site.name,
                entry,
                lambda e: _step(e, fp8=self.fp8),
                name=f"{site.name}_scale",
                dtype=ir.DataType.FLOAT,
                shape=(site.n,),
            ),
        )
        zero = self._zero(graph, f"{site.name}_zero", (site.n,))
        for use in site.uses:
            if use.transposed not in made:
                made[use.transposed] = [self._codes(graph, site, use), scale, zero]
            name = f"{use.node.outputs[0].name}/weight"
            axis: dict[str, int | float] = {"axis": 1 if use.transposed else 0}
            (weight,) = insert_before(
                use.node, "DequantizeLinear", made[use.transposed], [name], axis
            )
            weight.shape = ir.Shape(made[use.transposed][0].shape or ())
            weight.type = ir.TensorType(ir.DataType.FLOAT)
            use.node.replace_input_with(use.index, weight)

    @property
    def _dtype(self) -> ir.DataType:
        return ir.DataType.FLOAT8E4M3FN if self.fp8 else ir.DataType.INT8

    def _zero(self, graph: ir.Graph, name: str, shape: tuple[int, ...]) -> ir.Value:
        zeros = np.zeros(shape, np.int8).astype(self._dtype.numpy())
        return add_initializer(graph, ir.tensor(zeros, dtype=self._dtype, name=name))

    def _codes(self, graph: ir.Graph, site: Site, use: Use) -> ir.Value:
        shape = (site.k, site.n) if use.transposed else site.shape
        if len(site.shape) == 2 and not use.transposed:
            shape = (site.n, site.k)

        def part(encoded: Encoded) -> NDArray[np.generic]:
            codes = _float8(encoded) if self.fp8 else signed_codes(with_positive_scales(encoded))
            return codes.T if use.transposed else codes.reshape(shape)

        return add_initializer(
            graph,
            self.weights.lazy(
                site.name,
                self.entries[site.name],
                part,
                name=f"{site.name}_i8{'_t' if use.transposed else ''}",
                codes=True,
                dtype=self._dtype,
                shape=shape,
            ),
        )

    def _pair(self, graph: ir.Graph, value: ir.Value) -> ir.Value:
        observed = self.ranges[value.name or ""]
        if not self.symmetric:
            return self._shifted_pair(graph, value, observed)
        name = f"{value.name}/i8"
        scale = symmetric_scale(observed.low, observed.high)
        if self.fp8:
            scale = max(-observed.low, observed.high) / FP8_MAX or 1.0
        stored = add_constant(graph, f"{name}_scale", np.float32(scale))
        zero = self._zero(graph, f"{name}_zero", ())
        return add_pair(graph, value, stored, zero, name)

    def _shifted_pair(
        self, graph: ir.Graph, value: ir.Value, observed: ActivationRange
    ) -> ir.Value:
        name, grid = f"{value.name}/u8", activation_grid(observed.low, observed.high)
        stored = add_constant(graph, f"{name}_scale", np.float32(grid.scale))
        zero = add_constant(graph, f"{name}_zero", grid.stored_zero(signed=False))
        return add_pair(graph, value, stored, zero, name)


def _step(encoded: Encoded, *, fp8: bool) -> NDArray[np.generic]:
    """Scales per channel, positive as the parser wants them."""
    if fp8:
        return np.asarray(encoded.scale[:, 0] / FP8_MAX)
    return with_positive_scales(encoded).scale[:, 0]


def _float8(encoded: Encoded) -> NDArray[np.generic]:
    codes = encoded.codes.reshape(len(encoded.codes), -1)[:, : encoded.k]
    return np.ascontiguousarray(codes).view(ir.DataType.FLOAT8E4M3FN.numpy())
