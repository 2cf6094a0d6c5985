"""Residual streams whose channels can be rotated, and what has to be rewritten for it.

A tensor that carries a stream has it as one whole axis, x: [..., D]. A rotation Q replaces x by xQ.
Linear layers, additions and moves of other axes allow that, norms by the root mean square too. A
layer norm does once means are gone: every writer of the stream gives vectors without a mean, and
the norm is one by the root mean square (SliceGPT, 2401.15024). Gains and biases behind a norm are
folded into the layers that read it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from lwqc.graph.axis_analysis import AxisAnalysis
from lwqc.graph.groups import Groups
from lwqc.graph.stream import Stream
from lwqc.graph.stream_rules import RULES
from lwqc.graph.stream_walk import FixedError, Walk, where
from lwqc.model.refusal import Refusal

_NORMS = {
    ("", "LayerNormalization"), ("", "RMSNormalization"), ("", "SimplifiedLayerNormalization"),
    ("com.microsoft", "SkipLayerNormalization"),
    ("com.microsoft", "SkipSimplifiedLayerNormalization"),
}  # fmt: skip


@dataclass(frozen=True)
class Streams:
    """What can be rotated, and what was looked at and cannot."""

    streams: tuple[Stream, ...]
    fixed: tuple[Refusal, ...]


def find_streams(groups: Groups) -> Streams:
    """Look at every group that a normalisation mixes."""
    found, fixed = [], list(_frozen_norms(groups.analysis))
    for group in groups:
        if group.statistics:
            try:
                found.append(Walk(groups.analysis, group, RULES).stream())
            except FixedError as error:
                fixed.append(Refusal(group.name, str(error)))
    return Streams(tuple(found), tuple(fixed))


def _is_norm(node: ir.Node) -> bool:
    if node.op_type == "ReduceMean" and node.inputs[0] is not None:
        squares = node.inputs[0].producer()
        return squares is not None and squares.op_type == "Pow"
    return (node.domain, node.op_type) in _NORMS


def _frozen_norms(analysis: AxisAnalysis) -> Iterator[Refusal]:
    seen = set()
    for node in analysis.graph:
        dims = analysis.operand(node, 0)
        if not _is_norm(node) or not dims or dims[-1].size == 1:
            continue
        reasons = "; ".join(dict.fromkeys(leaf.frozen for leaf in dims[-1].leaves()))
        if all(leaf.frozen for leaf in dims[-1].leaves()) and reasons not in seen:
            seen.add(reasons)
            yield Refusal(where(node), reasons)
