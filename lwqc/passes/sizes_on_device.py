"""Sizes that arithmetic on data needs, without a copy to the device."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from lwqc.graph.size_arithmetic import from_sizes
from lwqc.model.edit import add_constant, insert_before
from lwqc.passes.base import Pass
from lwqc.passes.context import Context

_ELEMENTWISE = frozenset(
    {
        "Add", "Sub", "Mul", "Div", "Mod", "Less", "LessOrEqual", "Greater", "GreaterOrEqual",
        "Equal", "Min", "Max",
    }
)  # fmt: skip


class SizesOnDevice(Pass):
    """Let sizes reach arithmetic on data through Range.

    ONNX Runtime computes what comes from Shape on the CPU. Where a kernel on the device reads such
    a number, it inserts a copy, and with it a wait. Range takes its bounds from the CPU and writes
    its result on the device.

    Matches: a whole number of one element that comes from shapes alone, read by an element-wise
        operator whose other operand does not.
    Rewrites to: Range(number, number + 1, 1), in the shape of the number.
    """

    def rewrite(self, model: ir.Model, ctx: Context) -> int:
        """Rewrite all such reads of the main graph."""
        graph = model.graph
        sizes: set[ir.Value] = set()
        made: dict[ir.Value, ir.Value] = {}
        for node in list(graph):
            if from_sizes(node, sizes):
                sizes.update(node.outputs)
            elif node.domain == "" and node.op_type in _ELEMENTWISE:
                for index, value in enumerate(node.inputs):
                    if value in sizes and value is not None and _is_single(value):
                        if value not in made:
                            made[value] = _on_device(graph, node, value)
                        node.replace_input_with(index, made[value])
        return len(made)


def _is_single(value: ir.Value) -> bool:
    shape = value.shape
    if shape is None or value.dtype != ir.DataType.INT64 or len(shape) > 1:
        return False
    return len(shape) == 0 or shape[0] == 1


def _on_device(graph: ir.Graph, reader: ir.Node, value: ir.Value) -> ir.Value:
    name = f"{value.name}/on_device"
    one = add_constant(graph, f"{name}/one", np.array(1, np.int64))
    scalar = value
    if value.shape is not None and len(value.shape):
        none = add_constant(graph, f"{name}/scalar", np.array([], np.int64))
        (scalar,) = insert_before(reader, "Reshape", [value, none], [f"{name}/start"])
    (end,) = insert_before(reader, "Add", [scalar, one], [f"{name}/end"])
    is_vector = value.shape is not None and len(value.shape) == 1
    (row,) = insert_before(
        reader, "Range", [scalar, end, one], [name if is_vector else f"{name}/row"]
    )
    if not is_vector:
        none = add_constant(graph, f"{name}/scalar", np.array([], np.int64))
        (row,) = insert_before(reader, "Reshape", [row, none], [name])
    row.shape, row.type = value.shape, value.type
    return row
