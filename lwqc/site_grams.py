"""Gram matrices of the inputs that quantizable sites meet, collected when they are asked for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.backends.session import statistics_session
from lwqc.graph.sites import Site, Use
from lwqc.stats.collect import collect
from lwqc.stats.collector import Feeds
from lwqc.stats.gram import Gram
from lwqc.stats.patches import conv_window

_BATCH_BYTES = 768 << 20  # of matrices that one pass over the data collects
_SITE_BYTES = 2 << 30  # a site whose matrix is larger gets none


class SiteGrams:
    """Mean of x xᵀ per site, in batches of bounded memory: one pass over the data each."""

    def __init__(self, model: ir.Model, sites: Sequence[Site], data: Iterable[Feeds]) -> None:
        """model, sites: of the float model, as `find_sites` gives them. data: re-iterable."""
        self._model = model
        self._data = data
        self._collectors = {s.name: _gram(s) for s in sites}
        self._bytes = {s.name: 8 * s.groups * s.k**2 for s in sites}
        self._held: dict[str, NDArray[np.float64]] = {}

    def __call__(self, site: str) -> NDArray[np.float64] | None:
        """[convolution groups, K, K]; None where no matrix can be had (see `reason`)."""
        if self.reason(site):
            return None
        if site not in self._held:
            self._collect(site)
        return self._held[site]

    def reason(self, site: str) -> str:
        """Why a site has no Gram matrix, or ""."""
        if self._collectors.get(site) is None:
            return "its input is not that of a matrix product or convolution"
        if self._bytes[site] > _SITE_BYTES:
            return f"its Gram matrix would take {self._bytes[site] >> 20} MB"
        return ""

    def _collect(self, first: str) -> None:
        names = list(self._collectors)
        batch: list[str] = []
        size = 0
        for name in names[names.index(first) :]:
            if self.reason(name) or name in self._held:
                continue
            size += self._bytes[name]
            if batch and size > _BATCH_BYTES:
                break
            batch.append(name)
        wanted = {n: c for n in batch if (c := self._collectors[n]) is not None}
        found = collect(self._model, list(wanted.values()), self._data, statistics_session)
        self._held = {}
        for name, collector in wanted.items():
            total = found[collector]
            matrix = total.matrix if total.matrix.ndim == 3 else total.matrix[None]
            self._held[name] = matrix / max(total.rows, 1)


def _gram(site: Site) -> Gram | None:
    """Of the first use that is a product; tied weights are also read by a Gather."""
    uses = [use for use in site.uses if use.node.op_type in ("MatMul", "Gemm", "Conv")]
    if not uses or not _plain(uses[0]):
        return None
    use = uses[0]
    name = use.activation.name if use.activation is not None else None
    if not name:
        return None
    if use.node.op_type == "Conv":
        return Gram(name, conv_window(use.node, site.shape))
    return Gram(name)


def _plain(use: Use) -> bool:
    """The weight is the right operand, and the activation is read as it is."""
    transposed = use.node.attributes.get("transA")
    return use.index == 1 and (transposed is None or not transposed.as_int())
