"""8-bit activations behind switches: a layer reads its input as it is, or rounded to 8 bits."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from lwqc.graph.sites import find_sites
from lwqc.model.edit import insert_before
from lwqc.passes.rounding_gates import RoundingGates


class GateActivations(RoundingGates):
    """Let the input of some sites be rounded to 8 bits or not, by inputs of the graph.

    Matches: the sites named, where another operand meets the weight.
    Rewrites to: Where(gate, DequantizeLinear(DynamicQuantizeLinear(x)), x) in front of every use.
        Gate false is the model as it is, bit by bit.
    Refuses: activations that are not float32.
    """

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__()
        self._names = frozenset(names)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Add the gates."""
        for site in find_sites(model).sites:
            if site.name not in self._names:
                continue
            for number, use in enumerate(site.uses):
                value = use.activation
                if value is None or value.dtype not in (None, ir.DataType.FLOAT):
                    continue
                gate = self.gate(model.graph, site.name)
                base = f"{site.name}/rounded{number}"
                codes = insert_before(
                    use.node, "DynamicQuantizeLinear", [value], [f"{base}/{i}" for i in range(3)]
                )
                (rounded,) = insert_before(use.node, "DequantizeLinear", codes, [f"{base}/float"])
                (chosen,) = insert_before(use.node, "Where", [gate, rounded, value], [base])
                chosen.type, chosen.shape = value.type, value.shape
                use.node.replace_input_with(1 - use.index, chosen)
        return ir.passes.PassResult(model, bool(self.gates))
