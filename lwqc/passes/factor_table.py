"""A table of rows as a product of two factors."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.graph.sites import Use
from lwqc.graph.tables import Table
from lwqc.model.edit import add_initializer, insert_before, replace_stored
from lwqc.model.names import unique_name

Float = NDArray[np.float64]


def factor_table(graph: ir.Graph, table: Table, rows: Float, directions: Float) -> None:
    """Let a table [V, D] be rows [V, r] times directions [r, D], in place.

    Rewrites Gather(table, ids) to MatMul(Gather(rows, ids), directions), and a head x · tableᵀ to
    (x · directionsᵀ) · rowsᵀ, whose own nodes stay; it has a copy of directionsᵀ, as no kernel
    reads codes both ways. Factors have the table's type.
    """
    dtype, name = table.site.weight.tensor.dtype, table.name

    def stored(array: Float, end: str) -> ir.Value:
        return add_initializer(graph, _tensor(array, dtype, f"{name}/{end}"))

    source = table.site.weight.source
    shape = ir.Shape(rows.shape)
    replace_stored(source, _tensor(rows, dtype, source.name or ""))
    source.shape = shape
    spread = stored(directions, "directions")
    for use in table.takers:
        _forget_width(use)
        _widen(use.node, spread)
    if table.heads:
        narrow = stored(directions.T, "projection")
        for use in table.heads:
            _forget_width(use)
            label = f"{use.node.outputs[0].name}/narrow"
            (x,) = insert_before(use.node, "MatMul", [use.activation, narrow], [label])
            use.node.replace_input_with(1 - use.index, x)


def _tensor(array: Float, dtype: ir.DataType, name: str) -> ir.TensorProtocol:
    numbers = np.ascontiguousarray(array.astype(dtype.numpy()))
    return ir.tensor(numbers, dtype=dtype, name=name)


def _forget_width(use: Use) -> None:
    """Shapes between the stored tensor and its reader are others now."""
    value = use.node.inputs[use.index]
    while value is not None and (node := value.producer()) is not None:
        value.shape = None
        value = node.inputs[0]


def _widen(node: ir.Node, spread: ir.Value) -> None:
    """Put MatMul(y, spread) in the place of y, under its name and in its role as an output."""
    y, graph = node.outputs[0], node.graph
    if not isinstance(graph, ir.Graph):
        raise ValueError(f"{node.name} is in no graph")
    name = y.name or ""
    product = ir.node("MatMul", [y, spread], name=f"{name}/MatMul")
    wide = product.outputs[0]
    graph.insert_after(node, product)
    wide.shape, wide.type = y.shape, y.type
    wide.metadata_props.update(y.metadata_props)
    y.replace_all_uses_with(wide, replace_graph_outputs=True)
    product.replace_input_with(0, y)
    y.shape = None
    y.name, wide.name = unique_name(graph, f"{name}/rows"), name
