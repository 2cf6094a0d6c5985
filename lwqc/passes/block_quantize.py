"""Weight-only quantization: MatMulNBits and GatherBlockQuantized."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.graph.sites import Site, Use
from lwqc.model.edit import (
    add_constant,
    add_initializer,
    float_type,
    insert_before,
    replace_node,
)
from lwqc.passes.base import Pass
from lwqc.passes.context import Context
from lwqc.passes.encoded_weights import EncodedWeights
from lwqc.plans.plan import SiteEntry
from lwqc.quant.grid import Encoded, pack

MICROSOFT = "com.microsoft"
# MatMulNBits computes in float32 at level 0 and with int8 activations per block at level 4.
ACCURACY_LEVEL = {"none": 0, "dynamic": 4}


@dataclass(frozen=True)
class _Stored:
    """The initializers of one site.

    codes: uint8 [N, blocks, bytes per block], or [N, blocks * bytes per block] when an embedding
    shares them; scale: [N, blocks]; zero: packed like codes, or None.
    """

    codes: ir.Value
    scale: ir.Value
    zero: ir.Value | None


@dataclass(frozen=True, eq=False)
class BlockQuantize(Pass):
    """Store weights in 2, 4 or 8 bits (3 in 4) with a scale per block.

    Matches: sites used by MatMul, Gemm and Gather(axis 0), also tied ones.
    Rewrites to: com.microsoft MatMulNBits and GatherBlockQuantized on one shared copy of the codes.
    Leaves alone: sites without an entry. The target has already refused what has no such form.
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
            stored = self._store(model.graph, site, entry)
            for use in site.uses:
                rewrite = _gather if use.node.op_type == "Gather" else _matmul
                rewrite(model.graph, site, use, entry, stored)
            changes += 1
        if changes:
            model.opset_imports.setdefault(MICROSOFT, 1)
        return changes

    def _store(self, graph: ir.Graph, site: Site, entry: SiteEntry) -> _Stored:
        fmt, blocks = entry.weight, entry.weight.blocks(site.k)
        block_bytes = (fmt.block or site.k) * fmt.storage_bits // 8
        flat = "Gather" in site.ops
        shape = (site.n, blocks * block_bytes) if flat else (site.n, blocks, block_bytes)
        # With 8-bit activations the kernel packs codes with their scales, if those are stored.
        half = fmt.scale == "float16" and entry.activation == "none"
        make = self.weights.lazy
        codes = make(
            site.name,
            entry,
            lambda e: pack(e.codes, e.format.storage_bits).reshape(shape),
            name=f"{site.name}_q{fmt.storage_bits}",
            codes=True,
            dtype=ir.DataType.UINT8,
            shape=shape,
        )
        scale = make(
            site.name,
            entry,
            lambda e: e.scale.astype(np.float16) if half else e.scale,
            name=f"{site.name}_scale",
            dtype=ir.DataType.FLOAT16 if half else ir.DataType.FLOAT,
            shape=(site.n, blocks),
        )
        zero = None
        if not fmt.symmetric:
            zero = make(
                site.name,
                entry,
                _packed_zero,
                name=f"{site.name}_zero",
                dtype=ir.DataType.UINT8,
                shape=(site.n, -(-blocks * fmt.storage_bits // 8)),
            )
        return _Stored(
            add_initializer(graph, codes),
            add_initializer(graph, scale),
            add_initializer(graph, zero) if zero is not None else None,
        )


def _packed_zero(encoded: Encoded) -> NDArray[np.generic]:
    return pack(encoded.zero, encoded.format.storage_bits)


def _matmul(graph: ir.Graph, site: Site, use: Use, entry: SiteEntry, stored: _Stored) -> None:
    node, fmt = use.node, entry.weight
    blocks = fmt.blocks(site.k)
    block = fmt.block or site.k
    codes = stored.codes
    if len(codes.shape or ()) == 2:  # shared with an embedding; the runtime folds the Reshape
        shape = add_constant(
            graph,
            f"{site.name}_q{fmt.storage_bits}_shape",
            np.array([site.n, blocks, block * fmt.storage_bits // 8], np.int64),
        )
        (codes,) = insert_before(node, "Reshape", [codes, shape], [f"{codes.name}_blocks"])
    scale = stored.scale
    if scale.dtype != float_type(use.activation):
        target = int(float_type(use.activation))
        (scale,) = insert_before(
            node, "Cast", [scale], [f"{node.outputs[0].name}/scale"], {"to": target}
        )
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    fused_bias = bias if bias is not None and _is_vector(bias, site.n) else None
    inputs = [use.activation, codes, scale, stored.zero, None, fused_bias]
    while inputs[-1] is None:
        inputs.pop()
    (output,) = insert_before(
        node,
        "MatMulNBits",
        inputs,
        [f"{node.outputs[0].name}/nbits"],
        {
            "K": site.k,
            "N": site.n,
            "bits": fmt.storage_bits,
            "block_size": block,
            "accuracy_level": ACCURACY_LEVEL[entry.activation],
        },
        domain=MICROSOFT,
    )
    if bias is not None and fused_bias is None:
        (output,) = insert_before(node, "Add", [output, bias], [f"{node.outputs[0].name}/bias"])
    replace_node(node, output)


def _gather(graph: ir.Graph, site: Site, use: Use, entry: SiteEntry, stored: _Stored) -> None:
    node, fmt = use.node, entry.weight
    wanted = float_type(node.outputs[0])
    (output,) = insert_before(
        node,
        "GatherBlockQuantized",
        [stored.codes, use.activation, stored.scale, *([stored.zero] if stored.zero else [])],
        [f"{node.outputs[0].name}/rows"],
        {
            "bits": fmt.storage_bits,
            "block_size": fmt.block or site.k,
            "gather_axis": 0,
            "quantize_axis": 1,
        },
        domain=MICROSOFT,
    )
    if stored.scale.dtype != wanted:
        (output,) = insert_before(
            node, "Cast", [output], [f"{node.outputs[0].name}/cast"], {"to": int(wanted)}
        )
    replace_node(node, output)


def _is_vector(value: ir.Value, n: int) -> bool:
    return value.shape is not None and list(value.shape) == [n]
