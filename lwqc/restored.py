"""Models that are quantized already: back to floats, with what is known of their formats."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.backends.session import statistics_session
from lwqc.graph.sites import Site, find_sites
from lwqc.passes.restore_floats import RestoreFloats, is_quantized
from lwqc.passes.stored_codes import StoredCodes
from lwqc.plan import ActivationRange, Clip, Plan, Restore, SiteEntry
from lwqc.quant.formats import WeightFormat
from lwqc.quant.grid import Encoded
from lwqc.quant.stored_codes import from_stored, stored_format
from lwqc.stats.collect import collect
from lwqc.stats.min_max import MinMax
from lwqc.stats.ranges import ranges
from lwqc.workspace import Workspace

__all__ = ["Restored", "choose_clips", "is_quantized", "restored", "restored_plan"]

_BEYOND = 0.1  # of the range: less than that is what other data may reach


@dataclass(frozen=True)
class Restored(Mapping[str, Encoded]):
    """Codes by site, as the quantized model had them.

    entries: the formats, by site. ranges: of activations, by tensor. left: operators that stay as
    they are, and why.
    """

    stored: Mapping[str, StoredCodes]
    sites: Mapping[str, Site]
    ranges: Mapping[str, ActivationRange]
    left: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def entries(self) -> dict[str, SiteEntry]:
        """Format and activation of every site whose codes have a name in lwqc."""
        found = {}
        for name, stored in self.stored.items():
            fmt = self._format(name, stored)
            if fmt is not None:
                found[name] = SiteEntry(weight=fmt, activation=stored.activation)
        return found

    def _format(self, name: str, stored: StoredCodes) -> WeightFormat | None:
        if name not in self.sites:
            return None
        inputs = 0 if self.sites[name].uses[0].transposed else 1
        if self._matrix_is_stored(name):
            inputs = 1
        if stored.block is None and stored.axis is not None and stored.axis != 1 - inputs:
            return None
        if stored.block is not None and stored.axis != inputs:
            return None
        zero = stored.zero() if stored.zero is not None else None
        positive = bool((stored.scale() > 0).all())
        return stored_format(stored.bits, stored.block, zero, stored.scale_type, positive)

    def _matrix_is_stored(self, name: str) -> bool:
        """Whether the stored tensor is [N, K], whichever way the operator sees it."""
        site = self.sites[name]
        turned = any(step.op_type == "Transpose" for step in site.weight.steps)
        return turned and site.uses[0].transposed

    def __getitem__(self, name: str) -> Encoded:
        entry, stored, site = self.entries[name], self.stored[name], self.sites[name]
        codes = stored.codes()
        turned = site.uses[0].transposed and not self._matrix_is_stored(name)
        zero = stored.zero() if stored.zero is not None else None
        scale: NDArray[np.floating] = stored.scale()
        if stored.block is not None and turned:
            scale = scale.T
            zero = zero.T if zero is not None and zero.size > 1 else zero
        matrix = codes.T if turned else codes.reshape(site.n, site.k)
        return from_stored(matrix, scale, zero, entry.weight)

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


def choose_clips(work: Workspace) -> Restore:
    """Which tensors quantization limited, told by what reaches them on the data without it."""
    model, step = _floats(work, None)
    before = {
        node.name: value.name
        for node in model.graph
        if node.op_type == "Clip" and (value := node.inputs[0]) is not None and value.name
    }
    sources = {name: before.get(f"{name}/clip") for name in step.clipped}
    wanted = {name: MinMax(source) for name, source in sources.items() if source}
    found = collect(model, wanted.values(), work.data, statistics_session)
    clips: dict[str, Clip] = {}
    for name, collector in wanted.items():
        seen, kept = found[collector], step.clipped[name]
        room = _BEYOND * (kept.high - kept.low)
        if seen.high > kept.high + room or (seen.low < kept.low - room and kept.low < 0):
            clips[name] = "clip"
        elif seen.low < 0 and kept.low == 0:
            clips[name] = "relu"
    return Restore(clips=clips)


def _floats(work: Workspace, clips: Mapping[str, Clip] | None) -> tuple[ir.Model, RestoreFloats]:
    model = work.model.clone()
    step = RestoreFloats(clips)
    step(model)
    return model, step


def restored(work: Workspace, wanted: Restore) -> Workspace:
    """The work on the float model behind a quantized one; the quantized one stays the reference."""
    if "restored" not in work.versions:
        model, step = _floats(work, wanted.clips)
        sites = {s.name: s for s in find_sites(model.clone()).sites}
        known = Restored(dict(step.weights), sites, dict(step.ranges), dict(step.left))
        work.versions["restored"] = work.derived(model, known=known)
    return work.versions["restored"]


def restored_plan(work: Workspace, plan: Plan) -> Plan:
    """The plan with the formats that the model had, as far as the target has them."""
    known = work.known
    if not isinstance(known, Restored):
        return plan
    entries: dict[str, SiteEntry] = {}
    kept: dict[str, str] = dict(known.left)
    refused = work.target.flow(work.model.graph, work.analysis.sites).refused
    for site in work.analysis.sites:
        if site.name not in known.stored:
            continue
        entry = known.entries.get(site.name)
        if entry is None:
            kept[site.name] = "was stored in a format that lwqc has no name for"
            continue
        chosen = _nearest(work, site, entry, known, site.name in refused)
        if isinstance(chosen, str):
            kept[site.name] = chosen
        else:
            entries[site.name] = chosen
    plan = plan.model_copy(update={"quantize": entries, "kept_float": {**plan.kept_float, **kept}})
    return _with_ranges(work, plan, known)


def _nearest(
    work: Workspace, site: Site, entry: SiteEntry, known: Restored, refused: bool
) -> SiteEntry | str:
    """The entry, or the closest one that the target has."""
    static = not refused and all(
        use.activation is not None and use.activation.name in known.ranges for use in site.uses
    )
    weights = [entry.weight]
    if entry.weight.bits == 8:
        weights.append(WeightFormat(8))
    elif entry.weight.block is not None:
        weights.append(replace(entry.weight, symmetric=True, positive=True))
    wishes = [
        SiteEntry(weight=weight, activation=activation)
        for activation in (*(("static",) if static else ()), entry.activation, "none")
        for weight in weights
    ]
    reason = ""
    for wish in wishes:
        form = work.target.form(site, wish, work.opset)
        if not work.target.refuses(form):
            return wish
        reason = reason or form
    return reason


def _with_ranges(work: Workspace, plan: Plan, known: Restored) -> Plan:
    """The plan with the ranges of its static sites: measured where there were none."""
    static = [s for n, s in work.sites.items() if n in plan.quantize
              and plan.quantize[n].activation == "static"]  # fmt: skip
    owners = work.target.flow(work.model.graph, static).tensors if static else {}
    missing = sorted({owner for owner in owners.values() if owner not in known.ranges})
    measured = ranges(work.model, missing, work.data, statistics_session, "minmax")
    found = {
        name: known.ranges[owner]
        if owner in known.ranges
        else ActivationRange(low=measured[owner].low, high=measured[owner].high)
        for name, owner in owners.items()
    }
    return plan.model_copy(update={"activations": found})
