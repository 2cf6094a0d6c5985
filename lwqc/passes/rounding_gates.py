"""Inputs of a graph that say what of it is rounded to 8 bits in a run."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.model.edit import Rewrite
from lwqc.model.names import unique_name


class RoundingGates(Rewrite):
    """A rewrite that puts rounding behind gates, one for each name that it is told about.

    After `call`, `feeds` gives the inputs to add to those of the model.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gates: dict[str, str] = {}

    def gate(self, graph: ir.Graph, name: str) -> ir.Value:
        """The gate of a name, a boolean input; the same one each time."""
        if name in self.gates:
            return next(v for v in graph.inputs if v.name == self.gates[name])
        own = unique_name(graph, f"round/{name}")
        gate = ir.Value(name=own, type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape(()))
        graph.inputs.append(gate)
        self.gates[name] = own
        return gate

    def feeds(self, rounded: Iterable[str] = ()) -> dict[str, NDArray[np.bool_]]:
        """Values of all gates: true for the names given."""
        chosen = set(rounded)
        return {gate: np.asarray(name in chosen) for name, gate in self.gates.items()}
