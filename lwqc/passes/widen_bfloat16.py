"""Bfloat16 on a runtime without kernels for it: the same numbers in float32."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.model.edit import lazy_tensor, replace_stored
from lwqc.model.names import unique_name
from lwqc.model.tensor_bytes import read_array
from lwqc.model.weights import static_shape, stored_tensor
from lwqc.passes.base import Pass
from lwqc.passes.context import Context

_LOW, _WIDE = ir.DataType.BFLOAT16, ir.DataType.FLOAT
_MOVES = frozenset(
    {
        "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Gather", "Concat", "Split",
        "Flatten", "Identity", "Expand", "Relu",
    }
)  # fmt: skip


class WidenBfloat16(Pass):
    """Compute in float32 and round every result to bfloat16.

    Matches: bfloat16 tensors of the main graph.
    Rewrites to: float32 ones; behind each operator that computes, a Cast to bfloat16 and back.
    """

    exact = False

    def rewrite(self, model: ir.Model, ctx: Context) -> int:
        """Widen all tensors of the main graph."""
        graph = model.graph
        changes = 0
        for value in [*graph.initializers.values(), *(o for n in graph for o in n.outputs)]:
            tensor = stored_tensor(value)
            if tensor is not None and tensor.dtype == _LOW:
                made = lazy_tensor(_WIDE, static_shape(tensor), tensor.name, _reader(tensor))
                replace_stored(value, made)
                value.type = ir.TensorType(_WIDE)
                changes += 1
        for value in graph.inputs:
            if value.dtype == _LOW:
                value.type = ir.TensorType(_WIDE)
        for node in list(graph):
            low = [v for v in node.outputs if v.dtype == _LOW and stored_tensor(v) is None]
            for value in low:
                value.type = ir.TensorType(_WIDE)
                changes += 1
            if node.op_type == "ConstantOfShape" and low:
                fill = node.attributes["value"].as_tensor().numpy().astype(np.float32)
                node.attributes["value"] = ir.AttrTensor("value", ir.tensor(fill))
            elif node.op_type == "Cast" and low:
                _round(graph, node, low[0])
                node.attributes["to"] = ir.AttrInt64("to", int(_WIDE))
            elif node.op_type not in _MOVES:
                for value in low:
                    _round(graph, node, value)
        return changes


def _reader(tensor: ir.TensorProtocol) -> Callable[[], NDArray[np.generic]]:
    return lambda: read_array(tensor).astype(np.float32)


def _round(graph: ir.Graph, node: ir.Node, value: ir.Value) -> None:
    """Let all readers of a value read it rounded to bfloat16."""
    names = [unique_name(graph, f"{value.name}/{how}") for how in ("rounded", "widened")]
    down = ir.node("Cast", [value], {"to": int(_LOW)}, name=names[0])
    up = ir.node("Cast", [down.outputs[0]], {"to": int(_WIDE)}, name=names[1])
    down.outputs[0].name, up.outputs[0].name = down.name, up.name
    down.outputs[0].type = ir.TensorType(_LOW)
    up.outputs[0].type, up.outputs[0].shape = value.type, value.shape
    uses = [use for use in value.uses() if use.node is not down]
    graph.insert_after(node, [down, up])
    for use in uses:
        use.node.replace_input_with(use.idx, up.outputs[0])
    for index, output in enumerate(graph.outputs):
        if output is value:
            name, value.name = value.name, unique_name(graph, f"{value.name}/exact")
            up.outputs[0].name = name
            graph.outputs[index] = up.outputs[0]


def has_bfloat16(model: ir.Model) -> bool:
    """Whether the main graph computes in bfloat16."""
    stored = (v.dtype for v in model.graph.initializers.values())
    made = (v.dtype for node in model.graph for v in node.outputs)
    return any(dtype == _LOW for dtype in (*stored, *made))
