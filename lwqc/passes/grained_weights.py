"""Weights that lie in a file as 4-bit codes and are integers of 8 bits once it is loaded."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from lwqc.graph.sites import Site
from lwqc.model.edit import add_initializer
from lwqc.passes.encoded_weights import EncodedWeights
from lwqc.passes.unpack_builder import UnpackBuilder
from lwqc.plans.plan import SiteEntry
from lwqc.quant.codebook import LEVELS
from lwqc.quant.dual_grained import multiples
from lwqc.quant.grid import pack


def from_grained(
    graph: ir.Graph, build: UnpackBuilder, site: Site, entry: SiteEntry, weights: EncodedWeights
) -> tuple[ir.Value, ir.Value]:
    """The weight [K, N] in int8, computed at load from codes and multiples, and scales [N]."""
    fmt, blocks = entry.weight, entry.weight.blocks(site.k)
    block = fmt.block or site.k
    build.name(site.name)
    packed = weights.lazy(
        site.name,
        entry,
        lambda e: pack(e.codes.reshape(len(e.codes), -1), fmt.storage_bits),
        name=f"{site.name}_q4",
        codes=True,
        dtype=ir.DataType.UINT8,
        shape=(site.n, blocks * block // 2),
    )
    codes = build.unpacked(add_initializer(graph, packed), (site.n, blocks, block), entry)
    if fmt.whole:
        value = build.minus_zero(codes, entry)
    else:
        value = build.op("Gather", [build.stored(LEVELS[fmt.kind]), build.number(codes)])
    times = weights.lazy(
        site.name,
        entry,
        lambda e: multiples(e)[..., None],
        name=f"{site.name}_multiple",
        dtype=ir.DataType.INT8,
        shape=(site.n, blocks, 1),
    )
    factor = build.op("Cast", [add_initializer(graph, times)], to=int(ir.DataType.FLOAT))
    value = build.reshape(build.op("Mul", [value, factor]), (site.n, blocks * block))
    if blocks * block != site.k:
        value = build.cut(value, site.k, axis=1)
    whole = build.op("Cast", [build.op("Transpose", [value])], to=int(ir.DataType.INT8))
    scale = weights.lazy(
        site.name,
        entry,
        lambda e: np.asarray(e.channel, np.float32),
        name=f"{site.name}_scale",
        dtype=ir.DataType.FLOAT,
        shape=(site.n,),
    )
    return whole, add_initializer(graph, scale)
