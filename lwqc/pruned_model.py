"""Executes the pruning part of a plan."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from lwqc.backends.session import statistics_session
from lwqc.batch_norm import reestimate_batch_norm
from lwqc.channels import Prunable
from lwqc.errors import InputError
from lwqc.graph.consumers import SkippedNode
from lwqc.passes.prune_channels import prune_channels, remove_unused
from lwqc.plan import Pruning
from lwqc.reconstruct import reconstruct
from lwqc.stats.collector import Feeds


@dataclass(frozen=True)
class PrunedModel:
    """A model without the planned channels.

    sizes: group -> (channels before, after). skipped: layers that were not refitted, and why.
    """

    model: ir.Model
    sizes: Mapping[str, tuple[int, int]]
    skipped: tuple[SkippedNode, ...] = ()


def prune_model(model: ir.Model, pruning: Pruning, data: Iterable[Feeds]) -> PrunedModel:
    """Remove channels from a copy and let the other weights make up for them.

    data: feeds for the compensation; not read where the plan asks for none.
    Raises InputError when the plan does not fit the model.
    """
    prunable = Prunable(model, pruning.resizable_outputs)
    original = prunable.model.clone()
    groups = prunable.groups
    removed: dict[str, list[int]] = {}
    for unit in pruning.units:
        removed.setdefault(unit.group, []).append(unit.index)
    _check_slices(prunable, pruning)
    sizes = {n: (groups.by_name[n].size, groups.by_name[n].size - len(i)) for n, i in removed.items()}
    done = prune_channels(groups, removed)
    remove_unused(prunable.model)
    skipped: list[SkippedNode] = []
    if pruning.compensate != "none":
        skipped = reconstruct(
            original,
            prunable.model,
            done.kept,
            data,
            statistics_session,
            method=pruning.compensate,
        )
    if pruning.batch_norm:
        reestimate_batch_norm(prunable.model, data, statistics_session)
    return PrunedModel(prunable.model, sizes, tuple(skipped))


def _check_slices(prunable: Prunable, pruning: Pruning) -> None:
    """A plan lists the slices that go; a model where other ones would go is another model."""
    for unit in pruning.units:
        group = prunable.groups.by_name.get(unit.group)
        if group is None or not 0 <= unit.index < group.size:
            raise InputError(f"the plan removes {unit.group}[{unit.index}]: the model has no such")
        found = {(o.name, o.axis): [int(i) for i in gone] for o, gone in group.slices(unit.index)}
        planned = {(s.initializer, s.axis): list(s.indices) for s in unit.slices}
        if found != planned:
            raise InputError(f"the plan's slices of {unit.group}[{unit.index}] do not fit the model")
