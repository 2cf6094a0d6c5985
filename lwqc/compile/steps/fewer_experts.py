"""The step that merges experts of mixtures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx_ir as ir

from lwqc.compile.merged_experts import Expert, Units, experts_of, find_units, joined
from lwqc.compile.prunable import Prunable
from lwqc.compile.steps.step import Made, Step
from lwqc.compile.version import Version
from lwqc.errors import InputError
from lwqc.graph.mixtures import Mixture, find_mixtures
from lwqc.model.names import gather_names
from lwqc.passes.merge_experts import merge_experts
from lwqc.plans.plan import MergedExperts, Plan
from lwqc.plans.wording import amount_text, names_text


def hidden_units(version: Version, mixture: Mixture) -> Units | None:
    """Where hidden units of a mixture's experts lie."""
    groups = version.facts.get("groups of experts", lambda: Prunable(version.model).groups)
    return find_units(mixture, groups)


def with_fewer_experts(version: Version, entries: Sequence[MergedExperts]) -> Version:
    """The version with experts merged; made once. Raises InputError for what does not fit."""
    chosen = tuple(entries)

    def merged() -> ir.Model:
        copy = version.model.clone()
        gather_names(copy)
        mixtures = {mixture.name: mixture for mixture in find_mixtures(copy.graph)[0]}
        for entry in chosen:
            mixture = mixtures.get(entry.router)
            if mixture is None or mixture.experts != len(entry.into):
                raise InputError(
                    f"the plan merges {len(entry.into)} experts of {entry.router}: "
                    "the model has no such mixture"
                )
            _merge(copy.graph, mixture, entry, hidden_units(version, mixture))
        return copy

    return version.once("merge", chosen, merged)


def _merge(graph: ir.Graph, mixture: Mixture, entry: MergedExperts, units: Units | None) -> None:
    experts = experts_of(mixture)
    rows: list[Expert] = []
    for group in range(entry.left):
        members = [i for i, number in enumerate(entry.into) if number == group]
        own = [entry.shares[i] for i in members]
        rows.append(joined([experts[i] for i in members], own, units))
    merge_experts(graph, mixture, entry.into, rows)


def _run(made: Made) -> Made:
    return made.on(with_fewer_experts(made.version, made.plan.merge))


def _text(plan: Plan) -> Iterator[str]:
    mixtures = (f"{entry.router} {len(entry.into)} to {entry.left}" for entry in plan.merge)
    yield f"experts are merged: {names_text(mixtures)}"


STEP = Step(
    "merge",
    _run,
    _text,
    short=lambda plan: amount_text(len(plan.merge), "mixtures with fewer experts"),
)
