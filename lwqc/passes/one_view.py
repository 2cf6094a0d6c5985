"""The form of a model that every command looks at and rewrites."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from lwqc.graph.names import distinct_names, own_values, scopes
from lwqc.passes.plain_gemm import PlainGemm


def one_view(model: ir.Model) -> ir.Model:
    """The model, or a copy in which nothing hides from analyses; it computes the same.

    Functions are inlined (but those whose operator sets are of other versions than the model's),
    no two values of different bodies have one name, and Gemm has no factors that a stored operand
    can hold. Graph inputs and outputs keep their names.
    """
    if not (model.functions or _repeats(model) or _has_factors(model)):
        return model
    view = model.clone()
    view.meta.update(model.meta)
    if view.functions:
        _inline(view)
    names = distinct_names(view, [v for _, g in scopes(view.graph) for v in own_values(g)])
    for value, name in names.items():
        if value.name != name:
            value.name = name
    PlainGemm()(view)
    return view


def _repeats(model: ir.Model) -> bool:
    names = [v.name for _, g in scopes(model.graph) for v in own_values(g) if v.name]
    return len(names) != len(set(names))


def _has_factors(model: ir.Model) -> bool:
    return any(
        node.op_type == "Gemm" and not node.attributes.keys().isdisjoint(("alpha", "beta"))
        for node in model.graph.all_nodes()
    )


def _inline(model: ir.Model) -> None:
    versions = model.opset_imports

    def fits(function: ir.Function) -> bool:
        same = all(versions.get(d, v) == v for d, v in function.opset_imports.items())
        return same and set(function.inputs).isdisjoint(function.outputs)

    InlinePass(criteria=fits)(model)
