"""Repairs of NaN behind a softmax that never gives NaN."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from lwqc.graph.attention_core import guarded
from lwqc.model.weights import stored_tensor
from lwqc.passes.base import Pass
from lwqc.passes.context import Context

_MOVES = frozenset({"Reshape", "Expand", "Unsqueeze", "Identity", "Transpose"})
_LARGEST = float(np.finfo(np.float32).max)
_REASON = "a row of its mask may be -inf only"


@dataclass(frozen=True)
class DropNanGuards(Pass):
    """Let a softmax do without a repair of NaN.

    Matches: Where(IsNaN(p), 0, p) of a Softmax p, as torch's exporter writes attention.
    Rewrites to: p. Exact, as long as activations are finite, where the scores are products of
        activations plus stored numbers, or choices of such numbers, whose sum is finite.
    Refuses: masks that may hide a whole row with -inf.

    accept: drop those as well. Rows that are masked completely then give NaN.
    """

    keeps_sizes: ClassVar[bool] = True
    name: ClassVar[str] = "nan-guards"
    accept: bool = False

    def rewrite(self, model: ir.Model, ctx: Context) -> int:
        """Drop all guards that can be dropped."""
        changes = 0
        for node in list(model.graph):
            repaired = guarded(node.outputs[0]) if _is_softmax(node) else None
            if repaired is None or repaired.is_graph_output():
                continue
            name = repaired.name or ""
            scores = node.inputs[0]
            if scores is None or _lowest(scores) < -_LARGEST:
                if not self.accept:
                    ctx.refuse(name, _REASON)
                    continue
                ctx.relax(name, "nan-guards")
            repaired.replace_all_uses_with(node.outputs[0])
            changes += 1
        return changes


def _is_softmax(node: ir.Node) -> bool:
    return (node.domain, node.op_type) == ("", "Softmax")


def _lowest(value: ir.Value) -> float:
    """The smallest number that masks can add to scores; -inf where that is not known.

    Products of two activations count as 0.
    """
    tensor, node = stored_tensor(value), value.producer()
    if tensor is not None:
        return float(min(tensor.numpy().min(initial=0.0), 0.0))
    if node is None or node.domain != "":
        return -np.inf
    operands = [v for v in node.inputs if v is not None]
    if node.op_type == "MatMul":
        return 0.0
    if node.op_type == "Where":
        return min(_lowest(v) for v in operands[1:])
    if node.op_type in ("Mul", "Div"):
        # A scale leaves scores without a mask as they are, and might lift a mask to infinity.
        unmasked = any(_lowest(v) == 0 and stored_tensor(v) is None for v in operands)
        return 0.0 if unmasked and _has_stored(operands) else -np.inf
    if node.op_type == "Add":
        return sum(_lowest(v) for v in operands)
    return _lowest(operands[0]) if node.op_type in _MOVES else -np.inf


def _has_stored(values: list[ir.Value]) -> bool:
    """Whether one of them holds finite numbers."""
    tensors = [stored_tensor(v) for v in values]
    return any(t is not None and bool(np.isfinite(t.numpy()).all()) for t in tensors)
