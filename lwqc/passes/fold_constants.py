"""Constant folding and local simplification, by onnxscript's optimizer."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import onnx_ir as ir

from lwqc.graph.computed_filters import computed_filters
from lwqc.graph.sites import MIN_WEIGHTS
from lwqc.graph.value_types import forget_uncertain, output_shapes
from lwqc.model.names import nodes_of, scopes
from lwqc.model.weights import stored_tensor
from lwqc.passes.base import Pass, adopt
from lwqc.passes.context import Context
from lwqc.passes.inferred_once import inferred_once
from lwqc.passes.one_view import distinguish
from lwqc.passes.quiet import quiet
from lwqc.passes.rooted_rules import rooted_rules
from lwqc.passes.shielded import shielded

FOLDING = 1 << 18  # numbers in a tensor: folding may make a file a megabyte larger, but not more
_RULE = "pkg.onnxscript.rewriter.rule_name"
_ALLOWZERO_SINCE = 14  # opset
# Copies of what they read, as `trace_weight` follows them to the weight.
_COPIES = frozenset({"Transpose", "Identity", "Cast", "Reshape", "DequantizeLinear"})
_TALKATIVE = ("onnxscript", "onnx_ir")  # they tell of every node and tensor that they leave


@dataclass(frozen=True)
class FoldConstants(Pass):
    """Compute what does not depend on the inputs, and write what is left in fewer nodes.

    Matches: nodes whose operands are all stored and small; identities; casts, transposes, reshapes
        and slices that cancel out or follow each other; BatchNormalization behind a convolution or
        Gemm; equal initializers and equal expressions; nodes and functions that nothing reads.
    Rewrites to: stored tensors, fewer nodes. Exact but for the rounding of folded weights.
    Refuses: operands or results of more than `limit` numbers; without `copies` those of
        stored weights that would lie beside them in the file, or take more bytes than they do;
        what would be another weight than one of `whole`; large filters of convolutions that are
        made of few numbers; operators in training mode.

    limit: numbers. copies: of stored weights, which may then have kernels of their own. whole:
    names of stored weights of which something else is known than their numbers.
    """

    keeps_sizes = True
    limit: int = FOLDING
    copies: bool = True
    whole: tuple[str, ...] = ()

    def rewrite(self, model: ir.Model, ctx: Context) -> int:
        """Optimize all graphs of the model; functions are inlined.

        Where onnxscript's rules fail, whatever they raise, the model stays as it was.
        """
        from onnxscript.optimizer import optimize_ir

        before, counts, stated = model.clone(), _operators(model), output_shapes(model)
        computed = computed_filters(model.graph)
        _own_constants(model)
        try:
            with shielded(model), rooted_rules(), inferred_once(), quiet(*_TALKATIVE):
                optimize_ir(
                    model,
                    input_size_limit=self.limit,
                    output_size_limit=self.limit,
                    should_fold=lambda node: False if node in computed else self._may_fold(node),
                )
        except Exception as error:
            cause: BaseException = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            adopt(model, before)
            ctx.changed()
            ctx.refuse(model.graph.name or "graph", f"onnxscript's optimizer failed: {cause}")
            return 0
        _drop_new_attributes(model)
        _keep_stored_outputs(model)
        forget_uncertain(model, stated)
        distinguish(model)  # the rules name what they make without a look at other bodies
        # Types and shapes are told, and equal constants joined, in any case.
        ctx.changed(keeps_sizes=True)
        return int(_operators(model) != counts)

    def _may_fold(self, node: ir.Node) -> bool | None:
        """False where that is refused; None: as usual."""
        if any(v is not None and v.name in self.whole for v in node.inputs):
            return False
        return None if self.copies else _stored_once(node)


def _stored_once(node: ir.Node) -> bool | None:
    """False where folding would store a weight twice or in a larger type; None: as usual."""
    if node.domain != "" or node.op_type not in _COPIES:
        return None
    value, result = node.inputs[0], node.outputs[0]
    tensor = stored_tensor(value)
    if value is None or tensor is None or tensor.size < MIN_WEIGHTS:
        return None
    if len(list(value.uses())) > 1 or value.is_graph_output():
        return False
    wider = result.dtype is not None and result.dtype.bitwidth > tensor.dtype.bitwidth
    return False if wider else None


def _own_constants(model: ir.Model) -> None:
    """Copy what Constant nodes hold: it will be renamed, and clones of a model share it."""
    for node in nodes_of(model.graph):
        value = node.attributes.get("value")
        if (node.domain, node.op_type) == ("", "Constant") and value is not None:
            tensor = value.as_tensor()
            own = ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=tensor.name)
            node.attributes["value"] = ir.AttrTensor("value", own)


def _keep_stored_outputs(model: ir.Model) -> None:
    """Stored tensors that are outputs stay stored.

    onnxscript 0.7.2 takes away those that no node reads once its rules have matched.
    """
    for _, graph in scopes(model.graph):
        for value in graph.outputs:
            made = value.producer() is not None or value.is_graph_input()
            if value.const_value is not None and not made and not value.is_initializer():
                graph.register_initializer(value)


def _drop_new_attributes(model: ir.Model) -> None:
    """Take `allowzero` from Reshapes of an opset that does not know it, and names of rules.

    onnxscript 0.7.2 writes the one with shapes of known numbers, in which it says nothing.
    """
    old = model.opset_imports.get("", 1) < _ALLOWZERO_SINCE
    for node in nodes_of(model.graph):
        node.metadata_props.pop(_RULE, None)
        if old and (node.domain, node.op_type) == ("", "Reshape"):
            node.attributes.pop("allowzero", None)


def _operators(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in nodes_of(model.graph))
