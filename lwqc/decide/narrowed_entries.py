"""Entries of a plan on a model whose layers are narrower than those that it was made for."""

from __future__ import annotations

from collections.abc import Sequence

from lwqc.compile.version import Version
from lwqc.decide import planning
from lwqc.graph.sites import MIN_WEIGHTS, Site
from lwqc.plans.plan import Plan, SiteEntry


def plan_here(work: Version, plan: Plan, ranges: planning.RangeMethod) -> Plan:
    """The plan with each entry as the sites of `work` can take it, and ranges measured there.

    ranges: how activations are calibrated, see `planning.calibrate`.
    """
    entries: dict[str, SiteEntry] = {}
    kept: dict[str, str] = {}
    for name, site in work.sites.items():
        entry = plan.quantize.get(name)
        if name in plan.kept_float:
            kept[name] = plan.kept_float[name]
        if entry is None:
            continue
        few = site.size < MIN_WEIGHTS and entry.activation == "none" and not entry.unpacked
        legal = f"has only {site.size} weights" if few else entry_here(work, site, entry)
        if isinstance(legal, str):
            kept[name] = legal
        else:
            entries[name] = legal
    moved = plan.model_copy(update={"quantize": entries, "kept_float": kept, "activations": {}})
    return planning.calibrate(work, moved, ranges)


def entry_here(work: Version, site: Site, entry: SiteEntry) -> SiteEntry | str:
    """The entry, or the nearest one that a narrower site can take, or why it stays float."""
    target, opset = work.job.target, work.opset
    form = target.form(site, entry, opset)
    if not target.refuses(form):
        smaller = entry.size_bytes(site.n, site.k) < site.float_bytes
        return entry if smaller else f"{entry.weight} would not be smaller"
    fmt = entry.weight
    tiny = fmt.bits == 2 or fmt.only_stored
    options: Sequence[SiteEntry] = target.candidates(site, opset, tiny=tiny)
    same = [e for e in options if (e.weight.kind, e.weight.bits) == (fmt.kind, fmt.bits)]
    if not same:
        return str(form)
    block = entry.weight.block or site.k
    near = min(same, key=lambda e: abs((e.weight.block or site.k) - block))
    kernel = {"activation": entry.activation, "unpacked": entry.unpacked}
    return near.model_copy(update={"method": entry.method, **kernel})
