"""Exact rewrites that let the axis algebra see through a graph."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import TopologicalSortPass

from lwqc.graph.sampled import Sampled
from lwqc.graph.shapes import declared_shapes
from lwqc.passes.inline import inline_functions
from lwqc.passes.strided_reshape import strided_to_reshape


def prepare_pruning(model: ir.Model) -> tuple[ir.Model, dict[str, Sampled]]:
    """A copy with functions inlined and strided views as reshapes, and its tensors' sizes.

    The copy shares the weights and computes the same.
    """
    copy = model.clone()
    if copy.functions:
        inline_functions(copy)
    TopologicalSortPass()(copy)
    shapes, _ = declared_shapes(copy)
    if strided_to_reshape(copy, shapes):
        shapes, _ = declared_shapes(copy)
    return copy, shapes
