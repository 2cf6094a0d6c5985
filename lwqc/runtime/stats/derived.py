"""Tensors whose values are another tensor's, reordered or rectified: one statistic serves both."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import onnx_ir as ir

# Operators of the ONNX domain, any opset, whose output holds the values of input 0, each once.
REORDERING = frozenset({"Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose"})


@dataclass(frozen=True)
class Source:
    """Tensor to observe; relu: the derived tensor holds max(x, 0) of its values."""

    tensor: str
    relu: bool = False


def sources(model: ir.Model, names: Collection[str]) -> dict[str, Source]:
    """For each name, the furthest ancestor among `names` that determines its distribution.

    Only ancestors that are observed anyway count: observing another would keep the runtime from
    fusing an activation function into its producer.
    """
    producers = {v.name: node for node in model.graph for v in node.outputs if v.name}
    wanted = set(names)
    return {name: _source(name, producers, wanted) for name in wanted}


def _source(name: str, producers: dict[str, ir.Node], wanted: set[str]) -> Source:
    found, current, relu = Source(name), name, False
    while node := producers.get(current):
        if node.domain not in ("", "ai.onnx") or not node.inputs or node.inputs[0] is None:
            break
        if node.op_type == "Relu":
            relu = True
        elif node.op_type not in REORDERING:
            break
        current = node.inputs[0].name or ""
        if current in wanted:
            found = Source(current, relu)
    return found
