"""One session for every choice of residual branches."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Protocol

import onnx_ir as ir

from lwqc.errors import InputError
from lwqc.graph.branches import find_branches
from lwqc.model.unused import RemoveUnused
from lwqc.passes.gate_branches import GateBranches
from lwqc.runtime.stats.collector import Array, Feeds, Runner, RunnerFactory


class Gates(Protocol):
    """A pass that adds gates to a model, and then gives the inputs that close some of them."""

    def __call__(self, model: ir.Model, /) -> object:
        """Add the gates."""

    def feeds(self, closed: Iterable[str], /) -> Mapping[str, Array]:
        """Values of all gates."""


class GatedModel:
    """A model whose branches can be switched off run by run; see `GateBranches`.

    names: of the branches, or a pass that adds other gates, see `GateParallel`.

    Its outputs are those that can diverge: floats that no branch computes (a cache goes with its
    layer); with `every_output`, all. watched: values that it also returns. Raises InputError when
    no output is made of floats.
    """

    def __init__(
        self,
        model: ir.Model,
        names: Iterable[str] | Gates,
        make_runner: RunnerFactory,
        *,
        every_output: bool = False,
        watched: Iterable[str] = (),
    ) -> None:
        gated = model.clone()
        if not every_output:
            keep_results(gated)
        self._gates = GateBranches(names) if isinstance(names, Iterable) else names
        self._gates(gated)
        wanted = set(watched)
        found = [v for node in gated.graph for v in node.outputs if v.name in wanted]
        gated.graph.outputs.extend(v for v in found if not v.is_graph_output())
        self._run = make_runner(gated)

    def without(self, removed: Collection[str]) -> Runner:
        """The model with those gates closed: without those branches."""
        gates = self._gates.feeds(removed)

        def run(feeds: Feeds, /) -> dict[str, Array]:
            return self._run({**feeds, **gates})

        return run


def keep_results(model: ir.Model) -> None:
    """Leave only outputs that can diverge. Raises InputError when none is made of floats."""
    model.graph.outputs[:] = comparable_outputs(model.graph)
    RemoveUnused()(model)


def comparable_outputs(graph: ir.Graph) -> list[ir.Value]:
    """Outputs that can diverge: floats that no branch computes, where there are such.

    Raises InputError when none is made of floats.
    """
    inside = {node for branch in find_branches(graph).branches for node in branch.nodes}
    floats = [v for v in graph.outputs if v.dtype is None or v.dtype.is_floating_point()]
    results = [v for v in floats if v.producer() not in inside]
    if not floats:
        raise InputError("no output is made of floats, so none can diverge")
    return results or floats
