"""8-bit activations behind switches: a layer reads its input as it is, or rounded to 8 bits."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.graph.sites import find_sites
from lwqc.model.edit import Rewrite, insert_before
from lwqc.model.names import unique_name


class GateActivations(Rewrite):
    """Let the input of some sites be rounded to 8 bits or not, by inputs of the graph.

    Matches: the sites named, where another operand meets the weight.
    Rewrites to: Where(gate, DequantizeLinear(DynamicQuantizeLinear(x)), x) in front of every use.
        Gate false is the model as it is, bit by bit.
    Refuses: activations that are not float32.

    After `call`, `feeds` gives the inputs to add to those of the model.
    """

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__()
        self._names = frozenset(names)
        self.gates: dict[str, str] = {}

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Add the gates."""
        for site in find_sites(model).sites:
            if site.name not in self._names:
                continue
            for number, use in enumerate(site.uses):
                value = use.activation
                if value is None or value.dtype not in (None, ir.DataType.FLOAT):
                    continue
                gate = self._gate(model.graph, site.name)
                base = f"{site.name}/rounded{number}"
                codes = insert_before(
                    use.node, "DynamicQuantizeLinear", [value], [f"{base}/{i}" for i in range(3)]
                )
                (rounded,) = insert_before(use.node, "DequantizeLinear", codes, [f"{base}/float"])
                (chosen,) = insert_before(use.node, "Where", [gate, rounded, value], [base])
                chosen.type, chosen.shape = value.type, value.shape
                use.node.replace_input_with(1 - use.index, chosen)
        return ir.passes.PassResult(model, bool(self.gates))

    def _gate(self, graph: ir.Graph, site: str) -> ir.Value:
        if site in self.gates:
            return next(v for v in graph.inputs if v.name == self.gates[site])
        name = unique_name(graph, f"round/{site}")
        gate = ir.Value(name=name, type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape(()))
        graph.inputs.append(gate)
        self.gates[site] = name
        return gate

    def feeds(self, rounded: Iterable[str] = ()) -> dict[str, NDArray[np.bool_]]:
        """Values of all gates: true for the sites named."""
        chosen = set(rounded)
        return {gate: np.asarray(site in chosen) for site, gate in self.gates.items()}
