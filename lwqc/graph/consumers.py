"""Linear layers of a pruned model that read changed values, matched with their originals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.graph.changes import Changes, bodies
from lwqc.graph.linear_operand import Operand, linear_operand
from lwqc.model.refusal import Refusal
from lwqc.model.weights import static_shape, stored_tensor, trace_weight

Slices = Mapping[str, Mapping[int, NDArray[np.intp]]]


@dataclass(frozen=True, eq=False)
class Consumer:
    """One Conv, Gemm or MatMul with a stored weight, in the original and in the pruned model.

    rows: the original's output channels that are left, in order. groups: the original's
    convolution groups that are left, in order. narrowed: input channels were removed; else only
    values further up changed. bias: which operand of which node of the pruned model is added to
    the output, per channel; None without one. depth: how many consumers lie on the way to it.
    """

    original: Operand
    pruned: Operand
    rows: NDArray[np.intp]
    groups: tuple[int, ...]
    narrowed: bool
    bias: tuple[ir.Node, int] | None
    depth: int

    @property
    def name(self) -> str:
        """The node's name."""
        return node_name(self.pruned.node)


@dataclass
class Found:
    """Consumers in topological order, and the layers that cannot be refitted."""

    consumers: list[Consumer] = field(default_factory=list)
    skipped: list[Refusal] = field(default_factory=list)


# Operators with learned matrices or kernels that have no refit here.
_OTHERS = {"ConvTranspose", "DeformConv", "Einsum", "LSTM", "GRU", "RNN"} | {
    *("Attention", "MultiHeadAttention", "QAttention", "FusedMatMul", "FusedGemm", "FusedConv"),
    *("MatMulInteger", "ConvInteger", "QLinearMatMul", "QLinearConv", "MatMulIntegerToFloat"),
    *("DynamicQuantizeMatMul", "MatMulNBits", "MatMulBnb4"),
}


def find_consumers(original: ir.Model, pruned: ir.Model, slices: Slices) -> Found:
    """Match every linear layer behind a change with its original, by the name of its output.

    slices: stored tensor of the original -> axis -> indices that are left; whole ones are absent.
    """
    found, changes = Found(), Changes(original, slices)
    originals = {n.outputs[0].name: n for n in original.graph if n.outputs}
    for node in pruned.graph:
        is_layer = False
        if changes.reads_changed(node):
            answer = _consumer(originals.get(node.outputs[0].name), node, slices, changes)
            is_layer = isinstance(answer, Consumer)
            if isinstance(answer, Consumer):
                found.consumers.append(answer)
            elif answer:
                found.skipped.append(Refusal(node_name(node), answer))
            found.skipped += _in_bodies(node)
        changes.visit(node, is_layer)
    return found


def node_name(node: ir.Node) -> str:
    """Its name, or its output's where it has none."""
    return node.name or node.outputs[0].name or ""


def _in_bodies(node: ir.Node) -> list[Refusal]:
    inner = [n for body in bodies(node) for n in body.all_nodes()]
    reason = "is inside the body of an If, Loop or Scan"
    return [Refusal(node_name(n), reason) for n in inner if linear_operand(n) is not None]


def _consumer(
    before: ir.Node | None, node: ir.Node, slices: Slices, changes: Changes
) -> Consumer | str | None:
    """The consumer, why it cannot be refitted, or None for nodes without a learned matrix."""
    after = linear_operand(node)
    if after is None:
        return _other(node)
    if isinstance(after, str):
        return after
    if not changes.changed(after.activation):
        return None  # only its weight was sliced
    operand = linear_operand(before) if before is not None else None
    if not isinstance(operand, Operand):
        return "has no counterpart in the original model"
    if after.users > 1:
        return f"shares its weight {after.weight.name} with other nodes"
    if operand.users > 1 and after.weight.name != operand.weight.name:
        return f"its weight is a copy of the shared {operand.weight.name}"
    return _matched(operand, after, slices.get(operand.weight.name, {}), changes)


def _matched(
    before: Operand, after: Operand, kept: Mapping[int, NDArray[np.intp]], changes: Changes
) -> Consumer | str:
    if [s.op_type for s in before.weight.steps] != [s.op_type for s in after.weight.steps]:
        return "its weight is computed differently in the original model"
    rows = kept.get(before.stored_axis(before.out_axis), np.arange(before.out))
    if len(rows) != after.out or (len(rows) and rows[-1] >= before.out):
        return f"has {after.out} output channels, its slices say {len(rows)}"
    per_group = before.out // before.groups
    groups = np.unique(rows // per_group)
    if len(groups) != after.groups or len(rows) % len(groups):
        return f"has {after.groups} groups, its slices say {len(groups)}"
    if (rows // per_group != np.repeat(groups, len(rows) // len(groups))).any():
        return "its output channels do not follow its groups"
    narrowed = (before.features, before.groups) != (after.features, after.groups)
    kept_groups = tuple(int(g) for g in groups)
    node, depth = after.node, changes.depth(after.activation)
    return Consumer(
        before, after, rows, kept_groups, narrowed, bias_operand(node, after.out), depth
    )


def _other(node: ir.Node) -> str | None:
    if node.op_type in _OTHERS and any(
        trace_weight(v) is not None for v in node.inputs if v is not None
    ):
        return f"no refit of {node.op_type} is known"
    return None


def bias_operand(node: ir.Node, out: int) -> tuple[ir.Node, int] | None:
    """The stored vector [out] that is added to every output position of a Conv, Gemm or MatMul."""
    if node.op_type != "MatMul":
        has = len(node.inputs) > 2 and _per_channel(node.inputs[2], out)
        return (node, 2) if has else None
    uses = list(node.outputs[0].uses())
    if len(uses) != 1 or node.outputs[0].is_graph_output() or uses[0].node.op_type != "Add":
        return None
    add, index = uses[0].node, 1 - uses[0].idx
    return (add, index) if _per_channel(add.inputs[index], out) else None


def _per_channel(value: ir.Value | None, out: int) -> bool:
    tensor = stored_tensor(value)
    if tensor is None:
        return False
    shape = static_shape(tensor)
    return bool(shape) and shape[-1] == out and int(np.prod(shape)) == out
