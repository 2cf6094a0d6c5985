"""Weight-only quantization to 4-bit floats: MatMulBnb4."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from lwqc.graph.sites import Site, Use
from lwqc.model.edit import add_initializer, float_type, insert_before, replace_node
from lwqc.passes.base import Pass
from lwqc.passes.block_quantize import MICROSOFT
from lwqc.passes.context import Context
from lwqc.passes.encoded_weights import EncodedWeights
from lwqc.plans.plan import SiteEntry
from lwqc.quant.grid import Codes, Encoded, pack

QUANT_TYPE = {"fp4": 0, "nf4": 1}


@dataclass(frozen=True, eq=False)
class Bnb4(Pass):
    """Store weights as NF4 or FP4 codes with a scale per block.

    Matches: sites used by MatMul and Gemm with an entry; K is a multiple of the block, since the
    operator cuts blocks out of all rows laid end to end.
    Rewrites to: com.microsoft MatMulBnb4 (and an Add where there is a bias). Always with transB=1:
    with 0, onnxruntime 1.31.1 on the CPU returns wrong numbers, at times NaN.
    """

    exact: ClassVar[bool] = False
    planned: ClassVar[bool] = True
    entries: Mapping[str, SiteEntry]
    weights: EncodedWeights

    def rewrite(self, model: ir.Model, ctx: Context) -> int:
        """Rewrite every site that has an entry."""
        if not self.entries:
            return 0
        changes = 0
        for site in ctx.sites.sites:
            entry = self.entries.get(site.name)
            if entry is None:
                continue
            codes, scale = self._store(model.graph, site, entry)
            for use in site.uses:
                _rewrite(site, use, entry, codes, scale)
            changes += 1
        if changes:
            model.opset_imports.setdefault(MICROSOFT, 1)
        return changes

    def _store(self, graph: ir.Graph, site: Site, entry: SiteEntry) -> tuple[ir.Value, ir.Value]:
        half = entry.weight.scale == "float16"
        codes = self.weights.lazy(
            site.name,
            entry,
            _packed,
            name=f"{site.name}_q4",
            codes=True,
            dtype=ir.DataType.UINT8,
            shape=(site.n * site.k // 2,),
        )
        scale = self.weights.lazy(
            site.name,
            entry,
            lambda e: e.scale.reshape(-1).astype(np.float16 if half else np.float32),
            name=f"{site.name}_scale",
            dtype=ir.DataType.FLOAT16 if half else ir.DataType.FLOAT,
            shape=(site.n * entry.weight.blocks(site.k),),
        )
        return add_initializer(graph, codes), add_initializer(graph, scale)


def _packed(encoded: Encoded) -> Codes:
    """Two codes a byte, the first in the high bits."""
    pairs = encoded.codes.reshape(-1, 2)
    return pack(pairs[:, ::-1].reshape(-1), 4)


def _rewrite(site: Site, use: Use, entry: SiteEntry, codes: ir.Value, scale: ir.Value) -> None:
    node, fmt = use.node, entry.weight
    if scale.dtype != float_type(use.activation):
        target = int(float_type(use.activation))
        (scale,) = insert_before(
            node, "Cast", [scale], [f"{node.outputs[0].name}/scale"], {"to": target}
        )
    (output,) = insert_before(
        node,
        "MatMulBnb4",
        [use.activation, codes, scale],
        [f"{node.outputs[0].name}/bnb4"],
        {
            "K": site.k,
            "N": site.n,
            "block_size": fmt.block or site.k,
            "quant_type": QUANT_TYPE[fmt.kind],
        },
        domain=MICROSOFT,
    )
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None:
        (output,) = insert_before(node, "Add", [output, bias], [f"{node.outputs[0].name}/bias"])
    replace_node(node, output)
