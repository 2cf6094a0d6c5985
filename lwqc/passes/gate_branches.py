"""Residual branches behind switches: y = x + gate * f(x), each gate an input of the graph."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.model.edit import Rewrite, float_type, insert_before
from lwqc.model.names import unique_name
from lwqc.passes.remove_branches import chosen_branches


class GateBranches(Rewrite):
    """Multiply branches by scalar inputs, so that one session serves every choice of branches.

    Matches: the branches named, as `find_branches` finds them.
    Rewrites to: the sum of the stream and Mul(f(x), gate). Gate 1 leaves the branch, gate 0 is the
    model without it; graph outputs that the branch computes (a cache) do not change.
    Refuses: unknown names.

    After `call`, `feeds` gives the inputs to add to those of the model.
    """

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__()
        self._names = tuple(dict.fromkeys(names))
        self._gates: dict[str, ir.Value] = {}

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Add the gates. Raises InputError for a name that the model does not have."""
        for branch in chosen_branches(model.graph, self._names):
            dtype = float_type(branch.branch if branch.branch.dtype else branch.stream)
            gate = ir.Value(
                name=unique_name(model.graph, f"gate/{branch.name}"),
                type=ir.TensorType(dtype),
                shape=ir.Shape(()),
            )
            model.graph.inputs.append(gate)
            name = f"{branch.branch.name}/gated"
            (gated,) = insert_before(branch.add, "Mul", [branch.branch, gate], [name])
            gated.type, gated.shape = branch.branch.type, branch.branch.shape
            index = list(branch.add.inputs).index(branch.branch)
            branch.add.replace_input_with(index, gated)
            self._gates[branch.name] = gate
        return ir.passes.PassResult(model, bool(self._gates))

    def feeds(
        self, removed: Iterable[str] = (), default: float = 1.0
    ) -> dict[str, NDArray[np.generic]]:
        """Values of all gates: 0 for the branches named, `default` for the others."""
        values = dict.fromkeys(self._gates, default) | dict.fromkeys(removed, 0.0)
        return {
            self._gates[name].name or "": np.asarray(
                value, (self._gates[name].dtype or ir.DataType.FLOAT).numpy()
            )
            for name, value in values.items()
        }
