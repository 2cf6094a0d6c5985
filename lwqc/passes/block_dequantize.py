"""4-bit weights in blocks as DequantizeLinear, which TensorRT unpacks inside its product."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.graph.sites import Site, find_sites
from lwqc.model.edit import Rewrite, add_initializer, insert_before
from lwqc.passes.encoded_weights import EncodedWeights
from lwqc.plans.plan import SiteEntry
from lwqc.quant.grid import Encoded


class BlockDequantize(Rewrite):
    """Store weights of products as int4 with a scale per block of inputs.

    Matches: sites of MatMul and Gemm with a symmetric 4-bit entry in blocks.
    Rewrites to: DequantizeLinear of int4 codes [K, N] along axis 0 (opset 21), and a MatMul or Gemm
        that reads it untransposed.
    """

    def __init__(self, entries: Mapping[str, SiteEntry], weights: EncodedWeights) -> None:
        super().__init__()
        self._entries = entries
        self._weights = weights

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every site that has an entry."""
        modified = False
        for site in find_sites(model).sites:
            entry = self._entries.get(site.name)
            if entry is None:
                continue
            stored = self._store(model.graph, site, entry)
            for use in site.uses:
                name = f"{use.node.outputs[0].name}/weight"
                axis: dict[str, int | float] = {
                    "axis": 0,
                    "block_size": entry.weight.block or site.k,
                }
                (weight,) = insert_before(use.node, "DequantizeLinear", stored, [name], axis)
                weight.shape = ir.Shape((site.k, site.n))
                weight.type = ir.TensorType(ir.DataType.FLOAT)
                use.node.replace_input_with(use.index, weight)
                if use.node.op_type == "Gemm":
                    use.node.attributes["transB"] = ir.AttrInt64("transB", 0)
            modified = True
        return ir.passes.PassResult(model, modified)

    def _store(self, graph: ir.Graph, site: Site, entry: SiteEntry) -> list[ir.Value]:
        codes = self._weights.lazy(
            site.name,
            entry,
            _int4,
            name=f"{site.name}_q4",
            codes=True,
            dtype=ir.DataType.INT4,
            shape=(site.k, site.n),
        )
        scale = self._weights.lazy(
            site.name,
            entry,
            lambda e: e.scale.T.astype(np.float32),
            name=f"{site.name}_scale",
            dtype=ir.DataType.FLOAT,
            shape=(entry.weight.blocks(site.k), site.n),
        )
        return [add_initializer(graph, codes), add_initializer(graph, scale)]


def _int4(encoded: Encoded) -> NDArray[np.generic]:
    codes = encoded.codes.reshape(len(encoded.codes), -1)[:, : encoded.k].T
    return (codes.astype(np.int8) - np.int8(encoded.format.implicit_zero)).astype(
        ir.DataType.INT4.numpy()
    )
