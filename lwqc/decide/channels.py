"""Decides which channels of a model go: scores, comparison between groups, budget."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from lwqc.compile.prunable import Prunable
from lwqc.compile.steps.sliced import slices
from lwqc.compile.version import Version
from lwqc.decide.allocators.channel_budget import (
    Candidate,
    global_budget,
    local_budget,
    local_ratio,
)
from lwqc.decide.channel_ranking import rank
from lwqc.decide.prune_options import PruneOptions
from lwqc.decide.scores.channels.ranking import Ranking
from lwqc.errors import InputError
from lwqc.graph.groups import Group, Groups
from lwqc.graph.pruned_cost import Keep
from lwqc.graph.widths import width_step
from lwqc.model.names import bodies
from lwqc.model.weights import is_float, stored_tensor
from lwqc.plans.plan import Plan, PrunedUnit, Pruning, Source


@dataclass(frozen=True)
class Decision:
    """A pruning plan and what it leaves, in the unit of the ratio. limit: what was asked for.

    whole: groups that were not touched and why.
    """

    plan: Plan
    keep: Keep
    before: int
    after: int
    limit: float
    whole: Mapping[str, str]


def decide(work: Version, options: PruneOptions, prunable: Prunable | None = None) -> Decision:
    """Choose channels. Raises InputError, with the reasons, when nothing can be pruned."""
    return Choice(work, options, prunable).of(options.ratio)


class Choice:
    """Channels of a model in the order in which they go, for any share of it."""

    def __init__(
        self, work: Version, options: PruneOptions, prunable: Prunable | None = None
    ) -> None:
        """Raises InputError, with the reasons, when nothing can be pruned."""
        prunable = prunable or Prunable(work.model, options.resizable_outputs)
        self._work, self._options, self._groups = work, options, prunable.groups
        groups = prunable.groups
        if not len(groups):
            raise InputError(f"{work.name}: nothing can be pruned: {_frozen_reasons(groups)}")
        self._fixed = _overrides(groups, options.groups)
        chosen, self._whole = _chosen(groups, options, self._fixed)
        rankings = rank(work, prunable, chosen, options)
        cost = prunable.cost(work.job.data.fit.first())
        self._measure = cost.parameters if options.by == "parameters" else cost.macs
        self._before = self._measure({})
        if not self._before and options.by != "channels":
            raise InputError(
                f"{work.name}: nothing can be saved: it has no {options.by} at these sizes"
            )
        self._candidates = [
            _candidate(
                groups.by_name[n],
                r,
                options,
                _saved(self._measure, self._before, groups.by_name[n], options),
                n in self._fixed,
            )
            for n, r in rankings.items()
        ]

    def of(self, ratio: float) -> Decision:
        """What goes with a share, in place of that of the options."""
        options = replace(self._options, ratio=ratio)
        measure, before, whole = self._measure, self._before, dict(self._whole)
        keep = _allocate(self._candidates, measure, before, options, self._fixed)
        for candidate in self._candidates:
            if candidate.name not in keep:
                whole.setdefault(
                    candidate.name, "all its channels matter more, or rounding keeps them"
                )
        plan = Plan(
            source=Source(name=self._work.name),
            target=self._work.job.target.name,
            recipe=options.recipe,
            prune=Pruning(
                units=tuple(_units(self._groups, keep)),
                compensate=options.compensate,
                batch_norm=options.batch_norm,
                calibration=options.calibration,
                resizable_outputs=options.resizable_outputs,
            ),
        )
        limit = before if options.by == "channels" else before * (1 - ratio)
        return Decision(plan, keep, before, measure(keep), limit, whole)


def _frozen_reasons(groups: Groups) -> str:
    reasons = list(dict.fromkeys(axis.reason for axis in groups.frozen))[:3]
    overridable = [v.name for v in groups.analysis.graph.inputs if v.is_initializer()]
    if overridable:
        reasons.append(
            f"its weights ({overridable[0]}, ...) are also graph inputs, which callers may "
            "override; --constant-inputs makes them constants"
        )
    for node in groups.analysis.graph:
        if any(_has_weights(body) for _, body in bodies(node)):
            name = node.name or node.outputs[0].name
            reasons.append(f"bodies of {node.op_type} {name} hold weights, and are not pruned")
            break
    return "; ".join(reasons) or "it has no weights"


def _has_weights(body: ir.Graph) -> bool:
    """Whether a body, or one inside of it, stores a matrix of floats."""
    stored = (stored_tensor(v) for node in body.all_nodes() for v in node.inputs)
    return any(t is not None and is_float(t) and len(t.shape) > 1 for t in stored)


def _overrides(groups: Groups, wanted: Mapping[str, float]) -> dict[str, int]:
    fixed = {}
    for pattern, ratio in wanted.items():
        found = [g for g in groups if g.name == pattern or fnmatch.fnmatchcase(g.name, pattern)]
        if not found:
            raise InputError(f"{pattern}: the model has no such group; see lwqc inspect --groups")
        fixed.update({g.name: round(g.size * ratio) for g in found})
    return fixed


def _chosen(
    groups: Groups, options: PruneOptions, fixed: Mapping[str, int]
) -> tuple[list[Group], dict[str, str]]:
    """Groups that may lose channels, and why the others may not."""
    chosen, whole = [], {}
    for group in groups:
        step = width_step(group, options.round_to)
        if group.name in fixed:
            chosen.append(group)
        elif group.statistics and not options.statistics:
            whole[group.name] = "a normalisation mixes its channels; --statistics prunes it too"
        elif group.size <= max(step, options.min_channels):
            whole[group.name] = f"has only {group.size} channels, kept in steps of {step}"
        else:
            chosen.append(group)
    return chosen, whole


def _candidate(
    group: Group, ranking: Ranking, options: PruneOptions, saved: float, fixed: bool
) -> Candidate:
    least = options.min_channels
    if options.scope == "global" and options.by != "channels" and not fixed:
        least = max(least, int(np.ceil(group.size * (1 - options.max_ratio))))
    step = width_step(group, options.round_to)
    return Candidate(group.name, ranking.order, ranking.cost / saved, step, least)


def _saved(
    measure: Callable[[Keep], int], before: int, group: Group, options: PruneOptions
) -> float:
    """Share of the total that one channel saves, for prices per cost; else 1."""
    if not options.per_cost or options.by == "channels":
        return 1.0
    half = np.ones(group.size, np.bool_)
    half[: max(1, group.size // 2)] = False
    gone = before - measure({group.name: half})
    return max(gone / before, 1e-12) / max(1, group.size // 2)


def _allocate(
    candidates: list[Candidate],
    measure: Callable[[Keep], int],
    before: int,
    options: PruneOptions,
    fixed: Mapping[str, int],
) -> Keep:
    if options.by == "channels":
        return local_ratio(candidates, options.ratio, fixed)
    if options.ratio == 0:
        return local_ratio(candidates, 0.0, fixed)
    allocate = global_budget if options.scope == "global" else local_budget
    return allocate(candidates, measure, before * (1 - options.ratio), fixed)


def _units(groups: Groups, keep: Keep) -> list[PrunedUnit]:
    units = []
    for name, mask in keep.items():
        group = groups.by_name[name]
        for index in np.flatnonzero(~mask):
            units.append(PrunedUnit(group=name, index=int(index), slices=slices(group, int(index))))
    return units
