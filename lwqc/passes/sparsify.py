"""Executes the 2:4 part of a plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.graph.sites import BOTH_WAYS, Site, find_sites
from lwqc.model.edit import Rewrite, lazy_like, replace_stored
from lwqc.model.tensor_bytes import read_array
from lwqc.plans.plan import SparseEntry
from lwqc.quant.sparse import by_magnitude, by_sparsegpt, exchanged

Grams = Callable[[str], NDArray[np.float64] | None]


class Sparsify(Rewrite):
    """Set two of every four consecutive inputs of each output to zero.

    Matches: sites with an entry, stored as their operators read them. In convolutions the inputs
    are channels, for each position of the kernel.
    Rewrites to: the same tensors, computed when they are read.
    """

    def __init__(self, entries: Mapping[str, SparseEntry], grams: Grams) -> None:
        super().__init__()
        self._entries = entries
        self._grams = grams

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every site that has an entry."""
        modified = False
        for site in find_sites(model).sites:
            entry = self._entries.get(site.name)
            if entry is not None:
                self._rewrite(site, entry)
                modified = True
        return ir.passes.PassResult(model, modified)

    def _rewrite(self, site: Site, entry: SparseEntry) -> None:
        tensor, source = site.weight.tensor, site.weight.source
        transposed = site.uses[0].transposed
        shape, order = site.shape, input_order(site)

        def values() -> NDArray[np.generic]:
            stored = np.asarray(read_array(tensor), np.float32)
            matrix = stored.T if transposed else stored.reshape(site.n, site.k)
            gram = self._grams(site.name) if entry.method == "sparsegpt" or entry.refine else None
            seen = None if gram is None else gram[0][np.ix_(order, order)]
            result = np.empty_like(matrix)
            result[:, order] = _sparse(np.ascontiguousarray(matrix[:, order]), entry, seen)
            return result.T if transposed else result.reshape(shape)

        replace_stored(source, lazy_like(tensor, tensor.name, values))


def input_order(site: Site) -> NDArray[np.intp]:
    """Columns of the matrix [N, K] with input channels next to one another."""
    channels = site.shape[1] if len(site.shape) > 2 else site.k
    return np.arange(site.k).reshape(channels, -1).T.reshape(-1)


def sparse_refusal(site: Site) -> str:
    """Why a site cannot have 2:4 sparsity, or ""."""
    channels = site.shape[1] if len(site.shape) > 2 else site.k
    if not site.ops <= {"MatMul", "Gemm", "Conv"}:
        return f"{'+'.join(sorted(site.ops))} has no sparse kernel"
    if site.groups > 1:
        return "grouped convolutions have no sparse kernel"
    if channels % 4:
        return f"{channels} inputs are not a multiple of 4"
    if site.both_ways:
        return BOTH_WAYS
    if site.weight.steps:
        return "its weight is computed"
    return ""


def _sparse(
    weight: NDArray[np.float32], entry: SparseEntry, gram: NDArray[np.float64] | None
) -> NDArray[np.float32]:
    if entry.method == "sparsegpt" and gram is not None:
        return by_sparsegpt(weight, gram)
    found = by_magnitude(weight)
    return exchanged(weight, found, gram) if entry.refine and gram is not None else found
