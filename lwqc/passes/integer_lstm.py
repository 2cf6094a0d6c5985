"""8-bit weights for LSTM: DynamicQuantizeLSTM."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.graph.sites import Site, Use
from lwqc.model.edit import add_constant, add_initializer
from lwqc.passes.base import Pass
from lwqc.passes.block_quantize import MICROSOFT
from lwqc.passes.context import Context
from lwqc.passes.encoded_weights import EncodedWeights
from lwqc.passes.integer_matmul import signed_codes
from lwqc.plans.plan import SiteEntry
from lwqc.quant.grid import Encoded

# Weights of the input and of the step before, among the operands, and where the scales of each are;
# zero points follow.
SCALES = {1: 8, 2: 10}
_OPERANDS = 12


@dataclass(frozen=True, eq=False)
class IntegerLstm(Pass):
    """Multiply 8-bit weights with inputs and states that are rounded to 8 bits in each step.

    Matches: LSTM both of whose weights have an entry.
    Rewrites to: com.microsoft DynamicQuantizeLSTM, with signed weights [directions, K, 4 * hidden]
    and one scale per direction and gate output. Products are of 8 bits, gates and states float.
    """

    exact: ClassVar[bool] = False
    planned: ClassVar[bool] = True
    entries: Mapping[str, SiteEntry]
    weights: EncodedWeights

    def rewrite(self, model: ir.Model, ctx: Context) -> int:
        """Rewrite every LSTM whose weights have entries."""
        if not self.entries:
            return 0
        stored: dict[ir.Node, dict[int, tuple[ir.Value, ir.Value, ir.Value]]] = {}
        for site in ctx.sites.sites:
            entry = self.entries.get(site.name)
            if entry is None:
                continue
            parts = self._store(model.graph, site, entry)
            for use in site.uses:
                stored.setdefault(use.node, {})[use.index] = parts
        for node, parts_of in stored.items():
            _rewrite(node, parts_of)
        if stored:
            model.opset_imports.setdefault(MICROSOFT, 1)
        return len(stored)

    def _store(
        self, graph: ir.Graph, site: Site, entry: SiteEntry
    ) -> tuple[ir.Value, ir.Value, ir.Value]:
        directions, gates, k = site.shape

        def codes(encoded: Encoded) -> NDArray[np.int8]:
            return signed_codes(encoded).reshape(directions, gates, k).transpose(0, 2, 1)

        lazy = self.weights.lazy(
            site.name,
            entry,
            codes,
            name=f"{site.name}_i8",
            codes=True,
            dtype=ir.DataType.INT8,
            shape=(directions, k, gates),
        )
        scale = self.weights.lazy(
            site.name,
            entry,
            lambda e: e.scale[:, 0].reshape(directions, gates),
            name=f"{site.name}_scale",
            dtype=ir.DataType.FLOAT,
            shape=(directions, gates),
        )
        # The kernel takes zero points of single gates only where all of them are 0.
        zero = add_constant(graph, f"{site.name}_zero", np.zeros((directions, gates), np.int8))
        return add_initializer(graph, lazy), add_initializer(graph, scale), zero


def _rewrite(node: ir.Node, parts: Mapping[int, tuple[ir.Value, ir.Value, ir.Value]]) -> None:
    node.resize_inputs(_OPERANDS)
    for index, scale_at in SCALES.items():
        codes, scale, zero = parts[index]
        node.replace_input_with(index, codes)
        node.replace_input_with(scale_at, scale)
        node.replace_input_with(scale_at + 1, zero)
    node.attributes.pop("layout", None)
    node.domain, node.op_type = MICROSOFT, "DynamicQuantizeLSTM"


def lstm_refusal(site: Site) -> str:
    """Why the weights of a site's LSTM cannot be read as codes, or ""."""
    for use in site.uses:
        reason = _refusal(use)
        if reason:
            return reason
    return ""


def _refusal(use: Use) -> str:
    if use.node.op_type != "LSTM":
        return "its LSTM's weight is put together of several"
    layout = use.node.attributes.get("layout")
    if layout is not None and layout.as_int():
        return "its LSTM has the batch in front, and the 8-bit one has it behind"
    return ""


def paired(
    sites: Mapping[str, Site], entries: Mapping[str, SiteEntry]
) -> tuple[dict[str, SiteEntry], dict[str, SiteEntry]]:
    """Entries of weights whose LSTM has both of them in 8 bits; and the others."""
    known = {(use.node, use.index): n for n in entries for use in sites[n].uses}
    left = dict(entries)
    while True:
        alone = [
            name
            for name in left
            if any(known.get((u.node, 3 - u.index)) not in left for u in sites[name].uses)
        ]
        if not alone:
            return left, {n: e for n, e in entries.items() if n not in left}
        for name in alone:
            del left[name]
