"""8-bit tensors behind switches: all readers of a tensor see it as it is, or on its grid."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.model.edit import Rewrite, add_constant
from lwqc.model.names import unique_name
from lwqc.passes.insert_qdq import add_pair
from lwqc.quant.activation import ActivationGrid


class GateTensors(Rewrite):
    """Let tensors be rounded to static 8-bit grids or not, by inputs of the graph.

    Matches: the tensors of the main graph that have a grid.
    Rewrites to: Where(gate, DequantizeLinear(QuantizeLinear(x)), x) for every reader. Gate false is
        the model as it is, bit by bit.
    Refuses: tensors that are not float32.

    After `call`, `feeds` gives the inputs to add to those of the model.
    """

    def __init__(self, grids: Mapping[str, ActivationGrid]) -> None:
        super().__init__()
        self._grids = grids
        self.gates: dict[str, str] = {}

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Add the gates."""
        graph = model.graph
        values = {v.name: v for node in graph for v in node.outputs}
        values |= {v.name: v for v in graph.inputs}
        for name, grid in self._grids.items():
            if name in values and values[name].dtype in (None, ir.DataType.FLOAT):
                self._gate(graph, values[name], grid)
        return ir.passes.PassResult(model, bool(self.gates))

    def _gate(self, graph: ir.Graph, value: ir.Value, grid: ActivationGrid) -> None:
        users = list(value.uses())
        name = f"{value.name}/gated"
        scale = add_constant(graph, f"{name}_scale", np.float32(grid.scale))
        zero = add_constant(graph, f"{name}_zero", grid.stored_zero(signed=False))
        rounded = add_pair(graph, value, scale, zero, name)
        gate = ir.Value(
            name=unique_name(graph, f"round/{value.name}"),
            type=ir.TensorType(ir.DataType.BOOL),
            shape=ir.Shape(()),
        )
        graph.inputs.append(gate)
        self.gates[value.name or ""] = gate.name or ""
        where = ir.node("Where", [gate, rounded, value])
        chosen = where.outputs[0]
        chosen.name = unique_name(graph, f"{name}_chosen")
        chosen.type, chosen.shape = value.type, value.shape
        producer = rounded.producer()
        assert producer is not None
        graph.insert_after(producer, where)
        for use in users:
            use.node.replace_input_with(use.idx, chosen)

    def feeds(self, rounded: Iterable[str] = ()) -> dict[str, NDArray[np.bool_]]:
        """Values of all gates: true for the tensors named."""
        chosen = set(rounded)
        return {gate: np.asarray(name in chosen) for name, gate in self.gates.items()}
