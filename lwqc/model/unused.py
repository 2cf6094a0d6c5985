"""Removal of nodes and weights that nothing reads."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from lwqc.model.names import nodes_of, scopes

_PAST = slice(4, 6)  # inputs of Attention
_OUTPUTS = 3  # of Attention that keeps keys and values


class RemoveUnused(ir.passes.InPlacePass):
    """Remove what no output depends on.

    Matches: nodes, optional outputs and initializers that nothing reads, in all graphs.
    Rewrites to: the model without them.
    Refuses: keys and values of an Attention that gets a past: onnxruntime 1.31.1 refuses one whose
        new keys and values have no name.
    """

    name = "remove-unused"
    exact = True

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Remove nodes, initializers and optional outputs, subgraphs included."""
        kept = {n: [v.name for v in n.outputs] for n in nodes_of(model.graph) if _has_past(n)}
        modified = RemoveUnusedNodesPass()(model).modified
        for _, graph in scopes(model.graph):
            modified |= _remove_weights(graph)
        for node, names in kept.items():
            if node.graph is not None and len(names) == _OUTPUTS:
                node.resize_outputs(_OUTPUTS)
                for value, name in zip(node.outputs, names, strict=True):
                    value.name = name
        return ir.passes.PassResult(model, modified)


def _remove_weights(graph: ir.Graph) -> bool:
    """Remove initializers that nothing reads; those of bodies, which onnx-ir 1.1.0 leaves."""
    kept = {*graph.inputs, *graph.outputs}
    unused = [n for n, v in graph.initializers.items() if not v.uses() and v not in kept]
    for name in unused:
        del graph.initializers[name]
    return bool(unused)


def _has_past(node: ir.Node) -> bool:
    attention = (node.domain, node.op_type) == ("", "Attention")
    return attention and any(v is not None for v in node.inputs[_PAST])
