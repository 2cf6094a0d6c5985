"""Weights in low bits as DequantizeLinear of their rows, which runtimes read inside a product."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.graph.sites import Site, Use
from lwqc.model.edit import add_constant, add_initializer, float_type, insert_before
from lwqc.passes.base import Pass
from lwqc.passes.context import Context
from lwqc.passes.encoded_weights import EncodedWeights
from lwqc.plans.plan import SiteEntry
from lwqc.quant.grid import Encoded

# Types of codes by bits, without and with a zero point.
_TYPES = {
    4: (ir.DataType.INT4, ir.DataType.UINT4),
    8: (ir.DataType.INT8, ir.DataType.UINT8),
}


@dataclass(frozen=True, eq=False)
class RowDequantize(Pass):
    """Store weights in 4 or 8 bits, one scale per row or per block of a row.

    Matches: sites of any operator with an integer entry of 3, 4, 7 or 8 bits.
    Rewrites to: DequantizeLinear of codes [N, K] along axis 0, or in blocks along axis 1 (opset
        21); in front of it a Cast of float16 scales, behind it a Reshape to the operator's shape,
        and a Transpose for operands [K, N]. Codes are signed where there is no zero point.
    Leaves alone: sites without an entry. The target has already refused what has no such form.
    """

    exact: ClassVar[bool] = False
    planned: ClassVar[bool] = True
    entries: Mapping[str, SiteEntry]
    weights: EncodedWeights

    def rewrite(self, model: ir.Model, ctx: Context) -> int:
        """Rewrite every site that has an entry."""
        sites = [s for s in ctx.sites.sites if s.name in self.entries]
        first = model.graph[0] if sites else None
        for site in sites:
            stored = self._store(model.graph, site, self.entries[site.name])
            made: dict[tuple[ir.Node, bool], ir.Value] = {}
            for use in site.uses:
                # Inside of bodies: OpenVINO gives those of Scan nothing that is computed outside.
                anchor = first if use.node.graph is model.graph else use.node
                assert anchor is not None
                if (anchor, use.transposed) not in made:
                    made[anchor, use.transposed] = self._unpacked(anchor, site, use, stored)
                use.node.replace_input_with(use.index, made[anchor, use.transposed])
        return len(sites)

    def _unpacked(
        self, anchor: ir.Node, site: Site, use: Use, stored: Sequence[ir.Value]
    ) -> ir.Value:
        """The float weight as a use sees it, computed in front of a node."""

        def step(op: str, inputs: Sequence[ir.Value], part: str, **given: int) -> ir.Value:
            return insert_before(anchor, op, inputs, [f"{site.name}/{part}"], given)[0]

        block = self.entries[site.name].weight.block
        grain = {"axis": 1, "block_size": block} if block else {"axis": 0}
        codes, scale, *rest = stored
        shape = rest.pop() if len(site.shape) != 2 else None
        if scale.dtype != ir.DataType.FLOAT:  # which would round codes times scales
            scale = step("Cast", [scale], "scale", to=int(ir.DataType.FLOAT))
        value = step("DequantizeLinear", [codes, scale, *rest], "weight", **grain)
        wanted = float_type(use.node.inputs[use.index])
        if wanted != ir.DataType.FLOAT:
            value = step("Cast", [value], "cast", to=int(wanted))
        if shape is not None:
            value = step("Reshape", [value, shape], "shaped")
        return step("Transpose", [value], "turned") if use.transposed else value

    def _store(self, graph: ir.Graph, site: Site, entry: SiteEntry) -> list[ir.Value]:
        """Codes, scales and zero points; the shape where that is not [N, K]."""
        fmt = entry.weight
        dtype = _TYPES[fmt.storage_bits][not fmt.symmetric]
        half = fmt.scale == "float16"
        grain = (site.n,) if fmt.block is None else (site.n, fmt.blocks(site.k))
        make = self.weights.lazy
        parts = [
            make(
                site.name,
                entry,
                lambda e: _codes(e, dtype),
                name=f"{site.name}_q{fmt.storage_bits}",
                codes=True,
                dtype=dtype,
                shape=(site.n, site.k),
            ),
            make(
                site.name,
                entry,
                lambda e: e.scale.reshape(grain).astype(np.float16 if half else np.float32),
                name=f"{site.name}_scale",
                dtype=ir.DataType.FLOAT16 if half else ir.DataType.FLOAT,
                shape=grain,
            ),
        ]
        if not fmt.symmetric:
            parts.append(
                make(
                    site.name,
                    entry,
                    lambda e: e.zero.reshape(grain).astype(dtype.numpy()),
                    name=f"{site.name}_zero",
                    dtype=dtype,
                    shape=grain,
                )
            )
        values = [add_initializer(graph, part) for part in parts]
        if len(site.shape) != 2:
            sizes = np.array(site.shape, np.int64)
            values.append(add_constant(graph, f"{site.name}/shape", sizes))
        return values


def _codes(encoded: Encoded, dtype: ir.DataType) -> NDArray[np.generic]:
    """Codes [N, K]; without a zero point those of 0 are 0."""
    codes = encoded.codes.reshape(len(encoded.codes), -1)[:, : encoded.k]
    zero = encoded.format.implicit_zero if encoded.format.symmetric else 0
    return (codes.astype(np.int16) - np.int16(zero)).astype(dtype.numpy())
