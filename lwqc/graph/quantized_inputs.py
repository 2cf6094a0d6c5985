"""Which operands get a Q/DQ pair where kernels quantize their inputs only.

TensorRT fuses a convolution or product with the dequantization of its operands, and moves pairs
over operators that only copy. Outputs are not quantized; of the two operands of a residual addition
only the skip is, so that the other fuses with its convolution.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from lwqc.graph.sites import Site
from lwqc.model.weights import trace_weight

LEAST_CHANNELS = 16  # narrower layers gain nothing from integers
LONGEST_ATTENTION = 512  # tokens, above which attention products stay in floats


@dataclass
class QuantizedInputs:
    """reads: tensor -> operands (node, position) that read its pair. refused: site -> reason."""

    reads: dict[str, list[tuple[ir.Node, int]]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    @property
    def tensors(self) -> list[str]:
        """Names of the tensors with a pair."""
        return sorted(self.reads)


def quantized_inputs(
    graph: ir.Graph, sites: Collection[Site], sizes: Mapping[str, tuple[int, ...]] | None = None
) -> QuantizedInputs:
    """Find the operands to quantize for the given sites of `graph`.

    sizes: static shapes, by tensor. With them, products of two activations inside an attention of
    at most 512 tokens are quantized as well.
    """
    found = QuantizedInputs()
    convolutions: dict[ir.Value, ir.Node] = {}
    for site in sites:
        reason = next((r for use in site.uses if (r := _obstacle(graph, use.node))), None)
        if reason:
            found.refused[site.name] = reason
            continue
        for use in site.uses:
            _read(found, use.activation, use.node, 0)
            if use.node.op_type == "Conv":
                convolutions[use.node.outputs[0]] = use.node
    for node in graph:
        if node.op_type == "Add" and node.domain == "":
            skip = _skip(node, convolutions)
            if skip is not None:
                _read(found, node.inputs[skip], node, skip)
        elif sizes and node.op_type == "MatMul" and node.domain == "":
            if any(u.node is node for s in sites for u in s.uses):
                continue
            if _in_attention(node) and _short(node, sizes):
                for index, value in enumerate(node.inputs):
                    _read(found, value, node, index)
    return found


def _read(found: QuantizedInputs, value: ir.Value | None, node: ir.Node, index: int) -> None:
    if value is not None and value.name:
        found.reads.setdefault(value.name, []).append((node, index))


def _obstacle(graph: ir.Graph, node: ir.Node) -> str | None:
    if node.graph is not graph:
        return "is inside a subgraph"
    if trace_weight(node.inputs[0]) is not None:
        return "its input is constant"
    return None


def _skip(node: ir.Node, convolutions: Mapping[ir.Value, ir.Node]) -> int | None:
    """Position of a residual addition's skip operand: the one that no convolution ends in."""
    if len(node.inputs) != 2 or any(
        v is None or (v.producer() is None and not v.is_graph_input()) for v in node.inputs
    ):
        return None
    ends = [v is not None and v in convolutions and len(list(v.uses())) == 1 for v in node.inputs]
    if not any(ends) or any(trace_weight(v) is not None for v in node.inputs):
        return None
    return 1 if ends[0] else 0


def _in_attention(node: ir.Node) -> bool:
    """Whether a product of two activations is the first or second one of an attention."""
    if any(v is None or trace_weight(v) is not None for v in node.inputs):
        return False
    return _reaches(node, "Softmax", forward=True) or _reaches(node, "Softmax", forward=False)


def _reaches(node: ir.Node, op_type: str, *, forward: bool) -> bool:
    """Whether the operator follows, or leads, within the few steps of an attention."""
    level, steps = [node], 6
    for _ in range(steps):
        if forward:
            level = [u.node for n in level for v in n.outputs for u in v.uses()]
        else:
            level = [p for n in level if (v := n.inputs[0]) is not None and (p := v.producer())]
        if any(n.op_type == op_type for n in level):
            return True
        level = [n for n in level if n.op_type not in ("MatMul", "Gemm", "Conv")]
    return False


def _short(node: ir.Node, sizes: Mapping[str, tuple[int, ...]]) -> bool:
    shapes = [sizes.get(v.name or "") for v in (*node.inputs, *node.outputs) if v is not None]
    if any(s is None or len(s) < 2 for s in shapes):
        return False
    matrix = [d for s in shapes if s is not None for d in s[-2:]]
    return max(matrix) <= LONGEST_ATTENTION and min(matrix) >= LEAST_CHANNELS
