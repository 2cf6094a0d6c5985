"""Executes the pruning part of a plan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from lwqc.compile.prunable import Prunable, calibration
from lwqc.compile.result import GroupRow, PruningReport
from lwqc.compile.steps.batch_norm import reestimate_batch_norm
from lwqc.compile.steps.reconstruct import reconstruct
from lwqc.compile.steps.sliced import slices
from lwqc.compile.steps.step import Looks, Made, Step
from lwqc.compile.version import Version
from lwqc.errors import InputError
from lwqc.graph.groups import Groups
from lwqc.graph.pruned_cost import Keep
from lwqc.model.refusal import Refusal
from lwqc.model.unused import RemoveUnused
from lwqc.passes.prune_channels import prune_channels
from lwqc.plans.goals import Outcome
from lwqc.plans.plan import Plan, Pruning
from lwqc.plans.wording import amount_text, channels_by_group, names_text
from lwqc.runtime.session import statistics_session


@dataclass(frozen=True)
class PrunedModel:
    """A model without the planned channels.

    before: the prepared original and its groups. keep: what stays of each group that was pruned.
    skipped: layers that were not refitted, and why. whole: groups that were not pruned, and why.
    outcome: the budget and what was reached.
    """

    model: ir.Model
    before: Prunable
    keep: Keep
    skipped: tuple[Refusal, ...] = ()
    whole: Mapping[str, str] = field(default_factory=dict)
    outcome: Outcome | None = None
    notes: tuple[str, ...] = ()


def prune_model(work: Version, pruning: Pruning) -> PrunedModel:
    """Remove channels from a copy and let the other weights make up for them.

    Raises InputError when the plan does not fit the model.
    """
    before = Prunable(work.model, pruning.resizable_outputs)
    prunable = Prunable(work.model, pruning.resizable_outputs)
    data = calibration(work, pruning.calibration)
    _check_slices(prunable, pruning)
    removed: dict[str, list[int]] = {}
    for unit in pruning.units:
        removed.setdefault(unit.group, []).append(unit.index)
    done = prune_channels(prunable.groups, removed)
    RemoveUnused()(prunable.model)
    skipped: list[Refusal] = []
    if pruning.compensate != "none":
        skipped = reconstruct(
            before.model,
            prunable.model,
            done.kept,
            data,
            statistics_session,
            method=pruning.compensate,
            progress=work.job.report("refit"),
        )
    if pruning.batch_norm:
        reestimate_batch_norm(prunable.model, data, statistics_session)
    return PrunedModel(prunable.model, before, _keep(before.groups, removed), tuple(skipped))


def _keep(groups: Groups, removed: Mapping[str, list[int]]) -> Keep:
    keep = {name: np.ones(groups.by_name[name].size, np.bool_) for name in removed}
    for name, indices in removed.items():
        keep[name][indices] = False
    return keep


def pruning_report(work: Version, pruned: PrunedModel) -> PruningReport:
    """What went and what could not."""
    groups, keep = pruned.before.groups, pruned.keep
    cost = pruned.before.cost(work.job.data.fit.first())
    return PruningReport(
        macs=(cost.macs({}), cost.macs(keep)),
        parameters=(cost.parameters({}), cost.parameters(keep)),
        groups=tuple(
            GroupRow(
                name=g.name,
                marks=tuple(sorted(g.marks)),
                before=g.size,
                after=int(keep[g.name].sum()) if g.name in keep else g.size,
                reason=pruned.whole.get(g.name, ""),
            )
            for g in groups
        ),
        frozen=tuple((f.tensor, f.axis, f.size, f.reason) for f in groups.frozen),
        barriers=tuple((b.name, b.reason) for b in groups.barriers),
        not_refitted=tuple((s.name, s.reason) for s in pruned.skipped),
        notes=pruned.notes,
    )


def _check_slices(prunable: Prunable, pruning: Pruning) -> None:
    """A plan lists the slices that go; a model where other ones would go is another model."""
    for unit in pruning.units:
        group = prunable.groups.by_name.get(unit.group)
        if group is None or not 0 <= unit.index < group.size:
            raise InputError(f"the plan removes {unit.group}[{unit.index}]: the model has no such")
        if set(slices(group, unit.index)) != set(unit.slices):
            raise InputError(
                f"the plan's slices of {unit.group}[{unit.index}] do not fit the model"
            )


def _run(made: Made) -> Made:
    wanted = made.plan.prune
    if wanted is None:
        return made
    pruned = prune_model(made.version, wanted)
    # Codes that the model had are of whole weights.
    return made.on(made.version.derived(pruned.model, known=None), prune=pruned)


def _text(plan: Plan) -> Iterator[str]:
    if (prune := plan.prune) is None:
        return
    groups = channels_by_group(plan)
    counts = names_text(f"{group} {len(gone)}" for group, gone in groups.items())
    inputs = f", on {'random' if prune.calibration == 'random' else 'the given'} inputs"
    yield (
        f"{len(prune.units)} channels of {len(groups)} groups are removed: {counts}; "
        f"compensation: {prune.compensate}{inputs if prune.compensate != 'none' else ''}"
    )


def _short(plan: Plan) -> str:
    return "" if plan.prune is None else amount_text(len(plan.prune.units), "channels removed")


def _looks(plan: Plan) -> Iterator[Looks]:
    prune = plan.prune
    if prune is not None and (prune.compensate != "none" or prune.batch_norm):
        yield prune.calibration


STEP = Step("prune", _run, _text, _short, _looks)
