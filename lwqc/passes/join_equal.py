"""Computes once what several nodes compute from the same values."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import ClassVar

import onnx
import onnx_ir as ir

from lwqc.graph.mergeable import attribute_key
from lwqc.model.weights import static_shape, stored_tensor
from lwqc.passes.base import Pass
from lwqc.passes.context import Context

_COMPARED = 65536  # numbers of a stored tensor that is compared by its content


@dataclass(frozen=True)
class JoinEqual(Pass):
    """Let equal nodes share their results.

    only: where given, only nodes whose first output has one of these names.
    Matches: nodes of one operator with equal attributes and inputs; stored tensors of up to 65,536
        numbers are equal when their numbers are, so that norms whose gains were folded are.
    Rewrites to: the first of them.
    Refuses: operators without a schema of their opset, those that draw random numbers, nodes with
        subgraphs.
    """

    keeps_sizes: ClassVar[bool] = True
    only: tuple[str, ...] = ()

    def rewrite(self, model: ir.Model, ctx: Context) -> int:
        """Join all equal nodes of the main graph."""
        seen: dict[Hashable, ir.Node] = {}
        joined: list[ir.Node] = []
        for node in model.graph:
            if self.only and node.outputs[0].name not in self.only:
                continue
            if not _is_function(node, model.opset_imports.get(node.domain)):
                continue
            same = seen.setdefault(_key(node), node)
            if same is not node and not any(v.is_graph_output() for v in node.outputs):
                for old, new in zip(node.outputs, same.outputs, strict=True):
                    old.replace_all_uses_with(new)
                joined.append(node)
        model.graph.remove(joined, safe=True)
        return len(joined)


def _key(node: ir.Node) -> Hashable:
    inputs = tuple(None if v is None else _content(v) for v in node.inputs)
    return attribute_key(node), inputs, len(node.outputs)


def _content(value: ir.Value) -> Hashable:
    tensor = stored_tensor(value)
    if tensor is None or tensor.size > _COMPARED or tensor.dtype == ir.DataType.STRING:
        return value
    return tensor.dtype, static_shape(tensor), tensor.tobytes()


def _is_function(node: ir.Node, version: int | None) -> bool:
    """Whether equal inputs are known to give equal outputs."""
    try:
        schema = onnx.defs.get_schema(node.op_type, version or 1, node.domain)
    except onnx.defs.SchemaError:
        return False
    kinds = {a.type for a in node.attributes.values()}
    subgraphs = kinds & {ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS}
    return "seed" not in schema.attributes and not subgraphs
