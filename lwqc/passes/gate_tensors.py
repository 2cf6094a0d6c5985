"""8-bit tensors behind switches: all readers of a tensor see it as it is, or on its grid."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from lwqc.model.edit import add_constant
from lwqc.model.names import unique_name
from lwqc.passes.insert_qdq import add_pair
from lwqc.passes.rounding_gates import RoundingGates
from lwqc.quant.activation import ActivationGrid


class GateTensors(RoundingGates):
    """Let tensors be rounded to static 8-bit grids or not, by inputs of the graph.

    Matches: the tensors of the main graph that have a grid.
    Rewrites to: Where(gate, DequantizeLinear(QuantizeLinear(x)), x) for every reader. Gate false is
        the model as it is, bit by bit.
    Refuses: tensors that are not float32.
    """

    def __init__(self, grids: Mapping[str, ActivationGrid]) -> None:
        super().__init__()
        self._grids = grids

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Add the gates."""
        graph = model.graph
        values = {v.name: v for node in graph for v in node.outputs}
        values |= {v.name: v for v in graph.inputs}
        for name, grid in self._grids.items():
            if name in values and values[name].dtype in (None, ir.DataType.FLOAT):
                self._round(graph, name, values[name], grid)
        return ir.passes.PassResult(model, bool(self.gates))

    def _round(self, graph: ir.Graph, name: str, value: ir.Value, grid: ActivationGrid) -> None:
        users = list(value.uses())
        scale = add_constant(graph, f"{name}/gated_scale", np.float32(grid.scale))
        zero = add_constant(graph, f"{name}/gated_zero", grid.stored_zero(signed=False))
        rounded = add_pair(graph, value, scale, zero, f"{name}/gated")
        where = ir.node("Where", [self.gate(graph, name), rounded, value])
        chosen = where.outputs[0]
        chosen.name = unique_name(graph, f"{name}/gated_chosen")
        chosen.type, chosen.shape = value.type, value.shape
        dequantize = rounded.producer()
        assert dequantize is not None  # `add_pair` made it
        graph.insert_after(dequantize, where)
        for use in users:
            use.node.replace_input_with(use.idx, chosen)
