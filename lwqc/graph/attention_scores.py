"""What the attention of a residual branch multiplies to compare its tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from lwqc.graph.attention_core import find_attention
from lwqc.graph.branches import Branch
from lwqc.graph.sampled import Sampled

_INPUTS = 3  # of Attention without masks and caches: queries, keys, values


@dataclass(frozen=True, eq=False)
class AttentionScores:
    """Probabilities softmax(scale * query @ keys) of unmasked attention.

    query: [batch, heads, queries, size], or [batch, queries, heads * size] if `flat`. keys: alike,
    but [batch, heads, size, keys] if `upright` is not set.
    """

    query: ir.Value
    keys: ir.Value
    heads: int
    scale: float
    flat: bool = False
    upright: bool = False

    @property
    def query_tokens(self) -> tuple[ir.Value, int]:
        """Where the queries lie: tensor and axis."""
        return self.query, 1 if self.flat else 2

    @property
    def key_tokens(self) -> tuple[ir.Value, int]:
        """Where the keys lie: tensor and axis."""
        return self.keys, 1 if self.flat else 2 if self.upright else 3


def scores_of(
    graph: ir.Graph, branch: Branch, shapes: Mapping[str, Sampled]
) -> AttentionScores | str:
    """Of the one attention of a branch, or why they are not known."""
    nodes = set(branch.nodes)
    cores, refused = find_attention(graph, shapes)
    written = [core for core in cores if core.product in nodes]
    fused = [n for n in branch.nodes if (n.domain, n.op_type) == ("", "Attention")]
    if len(written) + len(fused) != 1:
        outputs = {output.name for node in nodes for output in node.outputs}
        reasons = [why for name, why in refused.items() if name in outputs]
        return f"attention: {reasons[0]}" if reasons else "its attention is not of a known form"
    if fused:
        return _of_operator(fused[0], shapes)
    core = written[0]
    if core.masks:
        return "its scores are masked"
    heads = shapes[core.query.name or ""].first[1]
    return AttentionScores(core.query, core.keys, heads, core.scale)


def _of_operator(node: ir.Node, shapes: Mapping[str, Sampled]) -> AttentionScores | str:
    if any(v is not None for v in node.inputs[_INPUTS:]) or _number(node, "is_causal"):
        return "its scores are masked"
    if _number(node, "softcap"):
        return "its scores are capped"
    query, keys = node.inputs[:2]
    sizes = [shapes.get(v.name or "") for v in (query, keys) if v is not None]
    if query is None or keys is None or any(s is None for s in sizes):
        return "its shapes are not known"
    q, k = (s.first for s in sizes if s is not None)
    flat = len(q) == 3
    heads = int(_number(node, "q_num_heads")) if flat else q[1]
    if heads < 1 or heads != (_number(node, "kv_num_heads") if flat else k[1]):
        return "several heads share their keys"
    if ir.DataType.FLOAT not in (query.dtype, keys.dtype):
        return "it is not computed in float32"
    size = q[2] // heads if flat else q[3]
    scale = _number(node, "scale") or 1 / math.sqrt(size)
    return AttentionScores(query, keys, heads, scale, flat, upright=not flat)


def _number(node: ir.Node, name: str) -> float:
    """A number among the attributes, 0 where it is left out."""
    attribute = node.attributes.get(name)
    return 0.0 if attribute is None else float(attribute.value)
