"""The form of a model that every command looks at and rewrites."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from lwqc.graph.sites import MIN_WEIGHTS
from lwqc.model.edit import add_initializer, lazy_like
from lwqc.model.names import distinct_names, gather_names, own_values, scopes
from lwqc.model.weights import stored_tensor
from lwqc.passes.context import Context
from lwqc.passes.inline import inline_functions
from lwqc.passes.loop_invariants import LoopInvariants, carried_unchanged, lost_states
from lwqc.passes.plain_einsum import PlainEinsum, product_of
from lwqc.passes.plain_gemm import PlainGemm
from lwqc.passes.plain_linear import PlainLinear, is_linear


def one_view(model: ir.Model) -> ir.Model:
    """The model, or a copy in which nothing hides from analyses; it computes the same.

    Functions are inlined (but those whose operator sets are of other versions than the model's),
    no two values of different bodies have one name, Gemm has no factors that a stored operand
    can hold, and Einsum with a weight and linear models of `ai.onnx.ml` are the matrix products
    that they are. What loops carry without changing it is read from outside. Graph inputs and
    outputs keep their names.
    """
    hides = (_has_functions, _repeats, _has_factors, _has_sums, _has_linear_models, _has_invariants)
    if not any(one(model) for one in hides):
        return model
    view = model.clone()
    view.meta.update(model.meta)
    if view.functions:
        _inline(view)
    distinguish(view)
    ctx = Context(view)
    ctx.claim_names()
    PlainGemm().rewrite(view, ctx)  # and no tidying: what nothing reads is the file's own
    if _has_sums(view):
        PlainEinsum().rewrite(view, ctx)
    PlainLinear().rewrite(view, ctx)
    lost = lost_states(view)
    LoopInvariants().rewrite(view, ctx)
    notes = (*lost, *(f"{one.name}: {one.reason}" for one in ctx.refused.values()))
    view.meta["lwqc_notes"] = (*view.meta.get("lwqc_notes", ()), *notes)
    return view


def distinguish(model: ir.Model) -> None:
    """Give values of one name in different bodies names of their own, in place."""
    values = [v for _, graph in scopes(model.graph) for v in own_values(graph)]
    for value, name in distinct_names(model, values).items():
        if value.name != name:
            if value.const_value is not None:
                value.const_value = _called(value.const_value, name)
            value.name = name


def _repeats(model: ir.Model) -> bool:
    names = [v.name for _, g in scopes(model.graph) for v in own_values(g) if v.name]
    return len(names) != len(set(names))


def _has_functions(model: ir.Model) -> bool:
    return bool(model.functions)


def _has_factors(model: ir.Model) -> bool:
    return any(
        node.op_type == "Gemm" and not node.attributes.keys().isdisjoint(("alpha", "beta"))
        for node in model.graph.all_nodes()
    )


def _has_sums(model: ir.Model) -> bool:
    return any(product_of(node) is not None for node in model.graph)


def _has_linear_models(model: ir.Model) -> bool:
    return any(is_linear(node) for node in model.graph.all_nodes())


def _has_invariants(model: ir.Model) -> bool:
    return any(carried_unchanged(node) for node in model.graph.all_nodes())


def _called(tensor: ir.TensorProtocol, name: str) -> ir.TensorProtocol:
    """The same tensor under another name; the original model shares the old one and keeps it."""
    if isinstance(tensor, (ir.ExternalTensor, ir.LazyTensor)):
        return lazy_like(tensor, name, tensor.numpy)
    proto = onnx.TensorProto()
    proto.CopyFrom(ir.serde.serialize_tensor(tensor))
    proto.name = name
    return ir.serde.deserialize_tensor(proto)


def _inline(model: ir.Model) -> None:
    inline_functions(model)
    _store_once(model)


def _store_once(model: ir.Model) -> None:
    """Store a constant of a function once for all of its calls."""
    gather_names(model)
    holders: dict[int, list[ir.Node]] = {}
    for node in model.graph.all_nodes():
        if node.op_type == "Constant" and not node.outputs[0].is_graph_output():
            tensor = stored_tensor(node.outputs[0])
            if tensor is not None and tensor.size >= MIN_WEIGHTS:
                holders.setdefault(id(tensor), []).append(node)
    for nodes in holders.values():
        tensor = stored_tensor(nodes[0].outputs[0])
        if len(nodes) == 1 or tensor is None:
            continue
        own = lazy_like(tensor, nodes[0].outputs[0].name, tensor.numpy)
        shared = add_initializer(model.graph, own)
        for node in nodes:
            node.outputs[0].replace_all_uses_with(shared)
            if node.graph is not None:
                node.graph.remove(node, safe=True)
