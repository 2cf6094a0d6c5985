"""A candidate of a search as a plan."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from lwqc.compile.prunable import Prunable
from lwqc.compile.steps.removed_branches import remove_planned, without_branches
from lwqc.compile.steps.sliced import slices
from lwqc.compile.version import Version
from lwqc.decide.allocators.evolutionary import Candidate
from lwqc.decide.narrowed_entries import entry_here
from lwqc.decide.planning import calibrate
from lwqc.decide.search.search_model import SearchModel
from lwqc.graph.branch_kinds import branch_tree
from lwqc.graph.groups import Group, Groups
from lwqc.graph.sites import MIN_WEIGHTS, find_sites
from lwqc.model.unused import RemoveUnused
from lwqc.passes.prune_channels import prune_channels
from lwqc.plans.plan import Plan, PrunedUnit, Pruning, RemovedBranch, SiteEntry, Source


def planned(
    found: SearchModel, candidate: Candidate, recipe: str, *, compensate: bool = True
) -> Plan:
    """What a candidate does, as a plan for its version of the model, see `SearchModel.version`.

    compensate: layers take over for removed branches (with data) and channels.
    """
    candidate = found.space.effective(candidate)
    work, space = found.version(candidate), found.space
    kinds = {b.name: b.kind for b in branch_tree(work.model.graph).branches}
    given = work.job.data.fit.given
    remove = tuple(
        RemovedBranch(
            name=space.items[i].name,
            kind=kinds[space.items[i].name],
            compensate="linear" if compensate and given else "none",
        )
        for i in space.of_kind("branch")
        if candidate[i] == 0
    )
    small = work.model
    if remove and compensate:  # which may leave a constant that is cut with its stream
        small = without_branches(work, remove).work.model
    elif remove:
        small = remove_planned(work.model, remove)[0]
    prunable = Prunable(small)
    removed = _removed(found, candidate, prunable.groups)
    units = tuple(
        PrunedUnit(group=name, index=i, slices=slices(prunable.groups.by_name[name], i))
        for name, indices in removed.items()
        for i in indices
    )
    if units:
        prune_channels(prunable.groups, removed)
        RemoveUnused()(prunable.model)
    entries, kept = _entries(found, candidate, work, prunable.model)
    plan = Plan(
        source=Source(name=work.name),
        target=work.job.target.name,
        recipe=recipe,
        remove=remove,
        prune=Pruning(
            units=units,
            compensate="refit" if compensate else "none",
            calibration="data" if given else "random",
        )
        if units
        else None,
        quantize=entries,
        rewrites=work.job.target.rewrites if entries else (),
        kept_float=kept,
    )
    if any(e.activation == "static" for e in entries.values()):
        plan = calibrate(work.derived(prunable.model), plan, "mse")
    return plan


def _removed(found: SearchModel, candidate: Candidate, groups: Groups) -> dict[str, list[int]]:
    """Channels that go, by groups of the model without the removed branches."""
    known = {}
    for item, group in found.groups.items():
        gone = np.flatnonzero(~found.space.keeps[item][candidate[item]])
        if len(gone):
            for occurrence in group.weights:
                known[(occurrence.name, occurrence.axis)] = (group, gone)
    removed = {}
    for group in groups:
        match = _match(group, known)
        if match is not None and len(match) < group.size:
            removed[group.name] = [int(i) for i in match]
    return removed


def _match(
    group: Group, known: Mapping[tuple[str, int], tuple[Group, np.ndarray]]
) -> np.ndarray | None:
    """The channels of the same group in the whole model; removing branches may rename it."""
    for occurrence in group.weights:
        before = known.get((occurrence.name, occurrence.axis))
        if before is None or before[0].size != group.size:
            continue
        same = next(
            o for o in before[0].weights if (o.name, o.axis) == (occurrence.name, occurrence.axis)
        )
        if np.array_equal(before[0].owner(same), group.owner(occurrence)):
            return before[1]
    return None


def _entries(
    found: SearchModel, candidate: Candidate, work: Version, model: ir.Model
) -> tuple[dict[str, SiteEntry], dict[str, str]]:
    """Entries of the sites that are left, and why the others stay float."""
    space = found.space
    wanted: dict[str, SiteEntry | None] = dict(found.constant)
    for stored in space.stored:
        if stored.item is not None:
            wanted[stored.name] = stored.entries[candidate[stored.item]]
    entries, kept = {}, {}
    for site in find_sites(model).sites:
        entry = wanted.get(site.name)
        if entry is None:
            few = f"has only {site.size} weights"
            kept[site.name] = few if site.size < MIN_WEIGHTS else "the budget allows float"
            continue
        legal = entry_here(work, site, entry)
        if isinstance(legal, str):
            kept[site.name] = legal
        else:
            entries[site.name] = legal
    return entries, kept
