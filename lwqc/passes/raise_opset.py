"""Lifts a model to a newer operator set."""

from __future__ import annotations

import logging

import onnx
import onnx_ir as ir

_QUIET = logging.getLogger("onnxscript.version_converter")


class RaiseOpset(ir.passes.InPlacePass):
    """Convert a model to a version of the default operator set.

    Matches: models of older versions.
    Rewrites to: every operator as that version has it, by onnxscript's converter, before opset 18
        by that of onnx; functions are inlined.
    Refuses: models that a converter cannot lift, or that have an operator the version does not
        know in that form; `refused` says why, and the model stays as it was.
    """

    def __init__(self, version: int) -> None:
        super().__init__()
        self._version = version
        self.refused = ""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Convert all graphs of the model."""
        self.refused = ""
        if model.opset_imports.get("", 1) >= self._version:
            return ir.passes.PassResult(model, False)
        trial = model.clone()
        self.refused = self._converted(trial)
        if self.refused:
            return ir.passes.PassResult(model, False)
        model.graph = trial.graph
        model.functions.clear()
        identifier = onnx.helper.make_opsetid("", self._version)
        needed = onnx.helper.find_min_ir_version_for([identifier])
        model.ir_version = max(model.ir_version or 0, needed)
        return ir.passes.PassResult(model, True)

    def _converted(self, model: ir.Model) -> str:
        """Convert in place; returns why that is not possible, or ""."""
        from onnxscript.version_converter import ConvertVersionPass

        level = _QUIET.level
        _QUIET.setLevel(logging.ERROR)  # it tells of every fallback
        try:
            ConvertVersionPass(self._version, fallback=True)(model)
        except Exception as error:  # the converters raise whatever onnx's bindings do
            return f"not converted to opset {self._version}: {_line(error)}"
        finally:
            _QUIET.setLevel(level)
        if model.opset_imports.get("") != self._version:
            return f"onnx cannot convert it to opset {self._version}"
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
