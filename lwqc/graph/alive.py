"""Which values are in memory while a graph runs in its order."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

_VIEWS = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"})
_IN_PLACE = frozenset({"Relu", "Clip", "Add", "Mul", "Sub", "Div", "Sigmoid", "Tanh", "Softmax"})


def moments(graph: ir.Graph, count: int) -> NDArray[np.float64]:
    """Which nodes' outputs are in memory while each node runs [nodes, count], with 1.

    In the order of the graph. Outputs last until their last reader, those of the graph to its end.
    Reshapes share the memory of what they read; operators on single elements write into an input
    that nothing else reads.
    """
    nodes = list(graph)
    place: dict[ir.Value, int] = {}
    last: dict[int, int] = {}
    for index, node in enumerate(nodes):
        read = [place[v] for v in node.inputs if v is not None and v in place]
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
        # Written over by its last reader, which then stands for both.
        over = end < len(nodes) and nodes[end].op_type in _IN_PLACE
        table[made : end if over and end > made else end + 1, made] = 1
    return table
