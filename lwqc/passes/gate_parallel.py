"""Pairs of branches behind switches: the second reads its own stream or what the first reads."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.errors import InputError
from lwqc.graph.adjacent import Pair
from lwqc.graph.branch_kinds import branch_tree
from lwqc.model.edit import Rewrite, insert_before
from lwqc.model.names import unique_name
from lwqc.passes.parallel_branches import chosen_pairs, feed


class GateParallel(Rewrite):
    """Choose what second branches read by inputs, so that one session serves every choice.

    Matches: pairs of branch names that `adjacent_pairs` finds.
    Rewrites to: f2(Where(gate, y1, what f1 reads)), each gate an input. Gate true is the model as
        it is, bit by bit; gate false is what `ParallelBranches` makes of the pair, chains included.
    Refuses: what `ParallelBranches` refuses.

    After `call`, `feeds` gives the inputs to add to those of the model.
    """

    def __init__(self, pairs: Iterable[Pair]) -> None:
        super().__init__()
        self._pairs = tuple(dict.fromkeys(pairs))
        self._gates: dict[str, str] = {}

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Add the gates. Raises InputError for a pair that the model does not have."""
        if model.opset_imports.get("", 1) < 9:
            raise InputError("parallel branches are tried with opset 9 or later: convert the model")
        tree = branch_tree(model.graph)
        adjacency = chosen_pairs(tree, self._pairs)
        wanted = {second for _, second in self._pairs}
        reads: dict[str, ir.Value] = {}  # second -> its gated stream
        for first, second in adjacency.pairs:
            if second not in wanted:
                continue
            branch = tree.by_name[second].branch
            gate = ir.Value(
                name=unique_name(model.graph, f"parallel/{second}"),
                type=ir.TensorType(ir.DataType.BOOL),
                shape=ir.Shape(()),
            )
            model.graph.inputs.append(gate)
            other = reads.get(first, tree.by_name[first].branch.stream)
            name = f"{branch.stream.name}/or_parallel"
            (value,) = insert_before(branch.nodes[0], "Where", [gate, branch.stream, other], [name])
            value.type, value.shape = branch.stream.type, branch.stream.shape
            feed(branch, value)
            reads[second] = value
            self._gates[second] = gate.name or ""
        return ir.passes.PassResult(model, bool(self._gates))

    def feeds(self, parallel: Iterable[str] = ()) -> dict[str, NDArray[np.generic]]:
        """Values of all gates. parallel: second branches of the pairs that are to be parallel."""
        chosen = set(parallel)
        return {gate: np.asarray(second not in chosen) for second, gate in self._gates.items()}
