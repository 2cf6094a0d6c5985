"""Which values are in memory while a graph runs in its order."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.graph.captures import captures

_VIEWS = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"})
_IN_PLACE = frozenset({"Relu", "Clip", "Add", "Mul", "Sub", "Div", "Sigmoid", "Tanh", "Softmax"})


def moments(graph: ir.Graph, count: int) -> NDArray[np.float64]:
    """Which nodes' outputs are in memory while each node runs [nodes, count], with 1.

    In the order of the graph. Outputs last until their last reader, bodies of nodes included, those
    of the graph to its end. Reshapes share the memory of what they read; operators on single
    elements write over one input of their size that nothing else reads.
    """
    nodes = list(graph)
    outer: dict[ir.Node, list[ir.Value]] = {}
    for node, values in captures(graph):
        outer.setdefault(node, []).extend(values)
    place: dict[ir.Value, int] = {}
    last: dict[int, int] = {}
    for index, node in enumerate(nodes):
        taken = (*node.inputs, *outer.get(node, ()))
        read = [place[v] for v in taken if v is not None and v in place]
        shares = node.op_type in _VIEWS and read
        own = read[0] if shares else index
        for value in node.outputs:
            place[value] = own
        for made in (*read, own):
            last[made] = index
    for value in graph.outputs:
        if value in place:
            last[place[value]] = len(nodes)
    table = np.zeros((len(nodes), count))
    for made, end in last.items():
        table[made : end + 1, made] = 1
    for index, node in enumerate(nodes):
        for read_value in node.inputs if node.op_type in _IN_PLACE else ():
            made = index if read_value is None else place.get(read_value, index)
            if made < index and last[made] == index and _as_large(read_value, node.outputs[0]):
                table[index, made] = 0
                break
    return table


def _as_large(value: ir.Value | None, out: ir.Value) -> bool:
    """Whether two values are known to have the same sizes."""
    return value is not None and value.shape is not None and value.shape == out.shape
