"""Weights that lie in a file as indices into codebooks, and other codes in planes of bits."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.graph.sites import Site
from lwqc.model.edit import add_initializer
from lwqc.passes.encoded_weights import EncodedWeights
from lwqc.passes.unpack_builder import UnpackBuilder
from lwqc.plans.plan import SiteEntry
from lwqc.quant.grid import Encoded
from lwqc.quant.planes import plane, plane_shape, planes_of

_BYTE = 8


def from_codebook(
    graph: ir.Graph, build: UnpackBuilder, site: Site, entry: SiteEntry, weights: EncodedWeights
) -> ir.Value:
    """The float weight [K, N] that indices and codebooks stand for."""
    fmt = entry.weight
    vectors, books = -(-site.n // fmt.dim), fmt.codebooks(site.n, site.k)
    count = 2**fmt.bits
    shape = (site.k, books, vectors // books)
    if fmt.bits == _BYTE:
        stored = _part(graph, site, entry, weights, _BYTE, 0, (site.k, vectors))
        indices = build.op("Cast", [stored], to=int(ir.DataType.INT32))
        if books > 1:
            indices = build.reshape(indices, shape)
    else:
        planes = stored_planes(graph, site, entry, weights, site.k * vectors)
        indices = build.from_planes(planes, shape)
    if books > 1:
        firsts = (np.arange(books, dtype=np.int32) * count)[:, None]
        indices = build.op("Add", [indices, build.stored(firsts)])
    table = weights.lazy(
        site.name,
        entry,
        partial(_books, rows=books * count),
        name="u/book",
        dtype=ir.DataType.FLOAT16,
        shape=(books * count, fmt.dim),
    )
    values = build.op("Cast", [add_initializer(graph, table)], to=int(ir.DataType.FLOAT))
    value = build.reshape(build.op("Gather", [values, indices]), (site.k, vectors * fmt.dim))
    return value if site.n % fmt.dim == 0 else build.cut(value, site.n, axis=1)


def stored_planes(
    graph: ir.Graph, site: Site, entry: SiteEntry, weights: EncodedWeights, codes: int
) -> Mapping[tuple[int, int], ir.Value]:
    """The stored planes of a site's codes, by their width and the bits below them."""
    return {
        (width, below): _part(
            graph, site, entry, weights, width, below, plane_shape(codes, width)
        )
        for width, below in planes_of(entry.weight.bits)
    }  # fmt: skip


def _part(
    graph: ir.Graph, site: Site, entry: SiteEntry, weights: EncodedWeights,
    width: int, below: int, shape: tuple[int, ...],
) -> ir.Value:  # fmt: skip
    """The bytes of one plane, or of whole bytes, as an initializer."""

    def codes(encoded: Encoded) -> NDArray[np.generic]:
        return encoded.codes if width == _BYTE else plane(encoded.codes, width, below)

    tensor = weights.lazy(
        site.name,
        entry,
        codes,
        # Names add up where every weight is few bytes: one part is called after its site.
        name=f"u/{width}" if below else f"{site.name}_q{entry.weight.bits}",
        codes=True,
        dtype=ir.DataType.UINT8,
        shape=shape,
    )
    return add_initializer(graph, tensor)


def _books(encoded: Encoded, rows: int) -> NDArray[np.generic]:
    assert encoded.books is not None
    return encoded.books.reshape(rows, -1).astype(np.float16)
