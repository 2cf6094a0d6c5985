"""Heads and groups of hidden units that go where nothing is lost by it (AxFormer, 2010.03688).

The finer levels behind whole blocks and branches: every head, and every eighth of the channels of
another group, the least important ones first, is tried once, and goes if what is lost with all that
went before stays allowed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from lwqc.compile.gated_model import keep_results
from lwqc.compile.prunable import Prunable
from lwqc.compile.steps.removed_branches import remove_planned
from lwqc.compile.steps.sliced import slices
from lwqc.compile.version import Version
from lwqc.decide.channel_ranking import rank
from lwqc.decide.prune_options import PruneOptions
from lwqc.decide.scores.branches.ablation import Ablation
from lwqc.decide.scores.channels.masked import MaskedModel
from lwqc.graph.groups import Group
from lwqc.model import io
from lwqc.plans.plan import PrunedUnit, Pruning, RemovedBranch
from lwqc.runtime.session import Session
from lwqc.runtime.stats.collector import Runner
from lwqc.runtime.stats.output_divergence import Measure

_PARTS = 8  # of a group of single channels
_HEADS = "heads"
_WITHIN = "head dims"


@dataclass(frozen=True)
class Part:
    """Channels of a group that go together. price: by which parts are ordered, lowest first."""

    group: Group
    indices: tuple[int, ...]
    price: float

    @property
    def name(self) -> str:
        """For caches and reports."""
        return f"{self.group.name}{list(self.indices)}"


def accepted_channels(
    work: Version,
    removed: Sequence[RemovedBranch],
    limit: float,
    measure: Measure,
) -> Pruning | None:
    """What goes of the model without the branches; None for nothing.

    limit: on the drop of the metric where there is one, else on the divergence of the outputs.
    Every group keeps one head, or an eighth.
    """
    model = remove_planned(work.model, removed)[0] if removed else work.model
    prunable = Prunable(model)
    parts = _parts(work, prunable)
    if not parts:
        return None
    loss = _loss(work, prunable, parts, measure)
    left = {p.group.name: sum(q.group is p.group for q in parts) for p in parts}
    report = work.job.report("removing channels")
    gone: list[Part] = []
    for tried, part in enumerate(sorted(parts, key=lambda p: p.price), 1):
        report(tried, len(parts))
        if left[part.group.name] == 1:
            continue
        if loss([*gone, part]) <= limit:
            gone.append(part)
            left[part.group.name] -= 1
    units = tuple(
        PrunedUnit(group=p.group.name, index=i, slices=slices(p.group, i))
        for p in gone
        for i in p.indices
    )
    return Pruning(units=units) if units else None


def _parts(work: Version, prunable: Prunable) -> list[Part]:
    """Heads, and parts of other groups; none of what a normalisation mixes or no layer reads."""
    leaves = {leaf for reader in prunable.readers for leaf in reader.features.leaves()}
    groups = [
        g
        for g in prunable.groups
        if not g.statistics and _WITHIN not in g.marks and g.factor in leaves and g.size > 1
    ]
    if not groups:
        return []
    score = "wanda" if work.job.data.fit.given else "l2"
    ranked = rank(work, prunable, groups, PruneOptions(0.5, score=score))
    found = []
    for group in groups:
        order, cost = ranked[group.name].order, ranked[group.name].cost
        count = group.size if _HEADS in group.marks else min(_PARTS, group.size)
        for positions in np.array_split(np.arange(group.size), count):
            indices = tuple(int(i) for i in order[positions])
            found.append(Part(group, indices, float(cost[positions].mean())))
    return found


def _loss(
    work: Version, prunable: Prunable, parts: Sequence[Part], measure: Measure
) -> Callable[[Sequence[Part]], float]:
    """What is lost without some parts, against the original with all its branches."""
    metric = work.job.metric
    owners = {p.group.factor for p in parts}
    readers = [r for r in prunable.readers if owners & set(r.features.leaves())]

    def runner(model: ir.Model) -> Session:
        return Session(model, label="masked model")

    masked = MaskedModel(
        prunable.model, readers, runner, io.read_array, every_output=metric is not None
    )
    by_name = {p.name: p for p in parts}

    def without(names: Collection[str]) -> Runner:
        removed: dict[Group, list[int]] = {}
        for name in names:
            removed.setdefault(by_name[name].group, []).extend(by_name[name].indices)
        return masked.without(removed)

    if metric is not None:
        reference = work.original.metric
        return lambda gone: metric.drop(reference, metric(without([p.name for p in gone])))
    whole = work.model.clone()
    keep_results(whole)
    original = runner(whole)
    ablation = Ablation(
        lambda names: without(names) if names else original,
        work.job.data.judge,
        measure,
        work.job.weights,
    )
    return lambda gone: ablation([p.name for p in gone])
