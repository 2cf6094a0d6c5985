"""Lifts a model to a newer operator set."""

from __future__ import annotations

from dataclasses import dataclass

import onnx
import onnx_ir as ir

from lwqc.graph.attention_core import find_attention
from lwqc.passes.base import Pass
from lwqc.passes.context import Context
from lwqc.passes.fuse_attention import refuse_attention
from lwqc.passes.fuse_gelu import OPSET as GELU
from lwqc.passes.fuse_gelu import find_gelus, fused_at_load
from lwqc.passes.fuse_layer_norm import OPSET as LAYER_NORM
from lwqc.passes.fuse_layer_norm import find_layer_norms, plainly_spelled
from lwqc.passes.fuse_rms_norm import find_rms_norms
from lwqc.passes.quiet import quiet


@dataclass(frozen=True)
class RaiseOpset(Pass):
    """Convert a model to a version of the default operator set.

    Matches: models of older versions; with `for_fusions` those with an attention, an RMS norm, or a
        GELU or layer norm in a spelling that the runtime does not recognise.
    Rewrites to: every operator as that version has it, by onnxscript's converter, before opset 18
        by that of onnx; functions are inlined.
    Refuses: models that a converter cannot lift, or that have an operator the version does not
        know in that form; the model stays as it was. With `for_fusions` that is told of every
        attention.
    """

    keeps_sizes = True
    version: int
    for_fusions: bool = False

    def rewrite(self, model: ir.Model, ctx: Context) -> int:
        """Convert all graphs of the model."""
        before = model.opset_imports.get("", 1)
        if self.for_fusions:
            _raise_for_fusions(model, self.version, ctx)
        elif reason := raise_opset(model, self.version):
            ctx.refuse(model.graph.name or "", reason)
        return int(model.opset_imports.get("", 1) != before)


def _raise_for_fusions(model: ir.Model, version: int, ctx: Context) -> None:
    if ctx.untold_sizes():
        return
    cores, refused = find_attention(model.graph, ctx.shapes)
    attentions = [*refused, *(core.softmax.outputs[0].name or "" for core in cores)]
    if cores or find_rms_norms(model.graph) or _is_spelled_out(model):
        reason = raise_opset(model, version)
        refused = dict.fromkeys(attentions, reason) if reason else refused
    refuse_attention(ctx, refused)


def _is_spelled_out(model: ir.Model) -> bool:
    """Whether it has a GELU or layer norm that newer operators compute, and the runtime misses."""
    opset = model.opset_imports.get("", 1)
    gelus = find_gelus(model) if opset < GELU else []
    norms = find_layer_norms(model) if opset < LAYER_NORM else []
    return not all(fused_at_load(cone) for cone, _ in gelus) or not all(
        plainly_spelled(cone) for cone, _ in norms
    )


def raise_opset(model: ir.Model, version: int) -> str:
    """Convert a model of an older version in place; returns why that is not possible, or ""."""
    if model.opset_imports.get("", 1) >= version:
        return ""
    trial = model.clone()
    reason = _converted(trial, version)
    if reason:
        return reason
    model.graph = trial.graph
    model.functions.clear()
    identifier = onnx.helper.make_opsetid("", version)
    needed = onnx.helper.find_min_ir_version_for([identifier])
    model.ir_version = max(model.ir_version or 0, needed)
    return ""


def _converted(model: ir.Model, version: int) -> str:
    """Convert in place, perhaps in part; returns why that is not possible, or ""."""
    from onnxscript.version_converter import ConvertVersionPass

    try:
        with quiet("onnxscript.version_converter"):  # it tells of every fallback
            ConvertVersionPass(version, fallback=True)(model)
    except Exception as error:  # the converters raise whatever onnx's bindings do
        return f"not converted to opset {version}: {_line(error)}"
    if model.opset_imports.get("") != version:
        return f"onnx cannot convert it to opset {version}"
    return next((why for n in model.graph.all_nodes() if (why := _invalid(n, model))), "")


def _invalid(node: ir.Node, model: ir.Model) -> str:
    """What the checker says against a node."""
    context = onnx.checker.C.CheckerContext()
    context.ir_version = model.ir_version or onnx.IR_VERSION
    context.opset_imports = dict(model.opset_imports)
    proto = ir.to_proto(node)
    for attribute in proto.attribute:  # nodes of bodies are asked about alone, and see more values
        for body in [attribute.g] if attribute.HasField("g") else attribute.graphs:
            del body.node[:], body.output[:]
    try:
        onnx.checker.check_node(proto, context)
    except (onnx.checker.ValidationError, ValueError) as error:
        return f"{node.op_type} {node.name}: {_line(error)}"
    return ""


def _line(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())[:200]
