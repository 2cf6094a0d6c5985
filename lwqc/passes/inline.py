"""Functions of a model, written out where they are called."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass


def inline_functions(model: ir.Model) -> None:
    """Inline in place, but for functions whose operator sets have other versions than the model's.

    Those that hand an input out as it is stay too.
    """
    versions = model.opset_imports

    def fits(function: ir.Function) -> bool:
        same = all(versions.get(d, v) == v for d, v in function.opset_imports.items())
        return same and set(function.inputs).isdisjoint(function.outputs)

    for graph in (model.graph, *(f.graph for f in model.functions.values())):
        for node in graph.all_nodes():
            called = model.functions.get(node.op_identifier())
            if called is not None and len(node.outputs) < len(called.outputs):
                node.resize_outputs(len(called.outputs))  # the pass wants all of them
    InlinePass(criteria=fits)(model)
