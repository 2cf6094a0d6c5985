"""Models that are quantized already: back to floats, with what is known of their formats."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.compile.steps.step import Made, Step
from lwqc.compile.version import Version
from lwqc.errors import InputError
from lwqc.graph.sites import Site, find_sites
from lwqc.model.tensor_bytes import read_array
from lwqc.passes.restore_floats import RestoreFloats, is_quantized
from lwqc.passes.stored_codes import StoredCodes
from lwqc.plans.plan import ActivationRange, Clip, Plan, Restore, SiteEntry
from lwqc.quant.formats import WeightFormat
from lwqc.quant.grid import Encoded
from lwqc.quant.stored_codes import fits_seven_bits, from_stored, rescaled, stored_format
from lwqc.runtime.session import statistics_session
from lwqc.runtime.stats.min_max import MinMax
from lwqc.runtime.stats.ranges import ranges

__all__ = ["Restored", "choose_clips", "demoted", "is_quantized", "restored", "restored_plan"]

_BEYOND = 0.1  # of the range: less than that is what other data may reach


@dataclass(frozen=True)
class Restored(Mapping[str, Encoded]):
    """Codes by site, as the quantized model had them.

    model: where the sites are. stored: codes by the name of the float weight. ranges: of
    activations, by tensor. left: operators that stay as they are, and why. narrow: codes that lie
    within 7 bits get the format of 7 bits, which some processors need.
    """

    model: ir.Model
    stored: Mapping[str, StoredCodes]
    ranges: Mapping[str, ActivationRange]
    left: Mapping[str, str] = field(default_factory=dict)
    narrow: bool = False

    def on(self, model: ir.Model) -> Restored:
        """The same for a changed model: a weight that was changed has no codes any more."""
        return replace(self, model=model)

    @property
    def names(self) -> Collection[str]:
        """Stored floats that stand for codes."""
        return self.stored.keys()

    @cached_property
    def sites(self) -> dict[str, Site]:
        """Sites of the model whose weights had codes."""
        # A copy of the graph (weights are shared), since passes take the original's apart.
        found = find_sites(self.model.clone()).sites
        return {site.name: site for site in found if site.name in self.stored}

    @cached_property
    def entries(self) -> dict[str, SiteEntry]:
        """Format and activation of every site whose codes have a name in lwqc."""
        found = {}
        for name in self.sites:
            fmt = self._format(name)
            if fmt is not None:
                found[name] = SiteEntry(weight=fmt, activation=self.stored[name].activation)
        return found

    def _format(self, name: str) -> WeightFormat | None:
        stored, site = self.stored[name], self.sites[name]
        inputs = 0 if site.uses[0].transposed else 1
        if self._matrix_is_stored(name):
            inputs = 1
        if stored.block is None and stored.axis is not None and stored.axis != 1 - inputs:
            return None
        if stored.block is not None and stored.axis != inputs:
            return None
        zero = stored.zero() if stored.zero is not None else None
        positive = bool((stored.scale() > 0).all())
        # A scale per channel takes next to nothing, and integer kernels want it in float32.
        scale = "float32" if stored.block is None else stored.scale_type
        fmt = stored_format(stored.bits, stored.block, zero, scale, positive)
        if fmt == WeightFormat(8) and self.narrow and fits_seven_bits(stored.codes()):
            return WeightFormat(7)
        return fmt

    def _matrix_is_stored(self, name: str) -> bool:
        """Whether the stored tensor is [N, K], whichever way the operator sees it."""
        site = self.sites[name]
        turned = any(step.op_type == "Transpose" for step in site.weight.steps)
        return turned and site.uses[0].transposed

    def changed(self, name: str) -> bool:
        """Whether the site's weight is no longer what its codes stand for."""
        return self._fitted(name) is None

    def _fitted(self, name: str) -> Encoded | None:
        site = self.sites[name]
        encoded = self._as_stored(name)
        return rescaled(encoded, site.matrix(read_array))

    def _as_stored(self, name: str) -> Encoded:
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

    def __getitem__(self, name: str) -> Encoded:
        encoded = self._fitted(name)
        if encoded is None:
            raise KeyError(name)
        return encoded

    def __iter__(self) -> Iterator[str]:
        return (name for name in self.entries if not self.changed(name))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def choose_clips(work: Version) -> Restore:
    """Which tensors quantization limited, told by what reaches them on the data without it."""
    model, step = _floats(work, None)
    sources = {name: node.inputs[0] for name, node in step.limits.items() if node.graph is not None}
    wanted = {
        n: MinMax(v.name)
        for n, v in sources.items()
        if v is not None and v.name and v.graph is model.graph
    }
    found = work.collect(model, wanted.values())
    # What is in bodies cannot be observed, so that their limits stay.
    clips: dict[str, Clip] = {
        n: "clip" for n, v in sources.items() if v is not None and n not in wanted
    }
    for name, collector in wanted.items():
        seen, kept = found[collector], step.clipped[name]
        room = _BEYOND * (kept.high - kept.low)
        if seen.high > kept.high + room or (seen.low < kept.low - room and kept.low < 0):
            clips[name] = "clip"
        elif seen.low < 0 and kept.low == 0:
            clips[name] = "relu"
    return Restore(clips=clips, left=step.left)


def _floats(work: Version, clips: Mapping[str, Clip] | None) -> tuple[ir.Model, RestoreFloats]:
    model = work.model.clone()
    step = RestoreFloats(clips)
    step(model)
    return model, step


def restored(work: Version, wanted: Restore) -> Version:
    """The work on the float model behind a quantized one; the quantized one stays the reference."""

    def made() -> Version:
        model, step = _floats(work, wanted.clips)
        unknown = sorted(wanted.clips.keys() - step.limits.keys())
        if unknown:
            raise InputError(
                f"the plan restores clips of tensors that no codes of the model limit: {unknown[0]}"
            )
        weights, ranges, left = dict(step.weights), dict(step.ranges), dict(step.left)
        narrow = work.job.target.integer_bits == 7
        return work.derived(model, known=Restored(model, weights, ranges, left, narrow))

    return work.facts.get(("restored", *sorted(wanted.clips.items())), made)


def restored_plan(work: Version, plan: Plan) -> Plan:
    """The plan with the formats that the model had, as far as the target has them."""
    known = work.known
    if not isinstance(known, Restored):
        return plan
    entries: dict[str, SiteEntry] = {}
    kept: dict[str, str] = {}
    refused = dict(work.job.target.flow(work.model.graph, work.analysis.sites).refused)
    for site in work.analysis.sites:
        if site.name not in known.stored:
            continue
        entry = known.entries.get(site.name)
        if entry is None:
            kept[site.name] = "was stored in a format that lwqc has no name for"
            continue
        chosen, reason = _nearest(work, site, entry, known, refused.get(site.name, ""))
        if reason:
            kept[site.name] = reason
        if chosen is not None:
            entries[site.name] = chosen
    plan = plan.model_copy(update={"quantize": entries, "kept_float": {**plan.kept_float, **kept}})
    lost = [s for s in work.analysis.skipped if s.name in known.stored]
    notes = (f"{s.name} is stored in float: {s.reason}" for s in lost)
    return _with_ranges(work, plan.noted(*notes), known)


def _nearest(
    work: Version, site: Site, entry: SiteEntry, known: Restored, refused: str
) -> tuple[SiteEntry | None, str]:
    """The entry, or the closest one that the target has; what it lost, and why."""
    had_static = all(
        use.activation is not None and use.activation.name in known.ranges for use in site.uses
    )
    static = had_static and not refused
    wishes = [
        SiteEntry(weight=weight, activation=activation)
        for activation in (*(("static",) if static else ()), entry.activation, "none")
        for weight in _formats(entry.weight, work.job.target.integer_bits)
    ]
    reason = last = refused if had_static else ""
    for wish in wishes:
        form = work.job.target.form(site, wish, work.opset)
        if work.job.target.refuses(form):
            reason, last = reason or form, form
        elif wish.weight != entry.weight:
            return wish, f"its {entry.weight} codes became {wish.weight}: {reason}"
        elif known.changed(site.name):
            return wish, f"encoded again as {wish.weight}: its weight was changed"
        elif reason and wish.activation == "none":
            return wish, f"weight only: {reason}"
        else:
            return wish, ""
    return None, reason if reason == last else f"{reason}; {last}"


def demoted(work: Version, plan: Plan, reasons: Mapping[str, str]) -> Plan:
    """The plan with sites whose kernels were not chosen: weight only, or without a format."""
    entries, kept = dict(plan.quantize), dict(plan.kept_float)
    for name, reason in reasons.items():
        wish = entries[name].model_copy(update={"activation": "none"})
        form = work.job.target.form(work.sites[name], wish, work.opset)
        if entries[name].activation == "none" or work.job.target.refuses(form):
            del entries[name]
            kept[name] = reason
        else:
            entries[name] = wish
            kept[name] = f"weight only: {reason}"
    needed = _static_tensors(work, entries)
    ranges = {n: r for n, r in plan.activations.items() if n in needed}
    changes = {"quantize": entries, "kept_float": kept, "activations": ranges}
    return plan.model_copy(update=changes)


def _static_tensors(work: Version, entries: Mapping[str, SiteEntry]) -> dict[str, str]:
    """Tensors that static sites quantize, and the tensor whose range each takes."""
    static = [
        site
        for name, site in work.sites.items()
        if name in entries and entries[name].activation == "static"
    ]
    return dict(work.job.target.flow(work.model.graph, static).tensors) if static else {}


def _formats(stored: WeightFormat, integer_bits: int) -> list[WeightFormat]:
    """The format of stored codes, then those that they could become."""
    found = [stored]
    if stored.bits in (7, 8) and stored.kind == "int":
        found.append(WeightFormat(8))
        if integer_bits == 7:
            found.append(WeightFormat(7))
    elif stored.block is not None:
        found.append(replace(stored, symmetric=True, positive=True))
    return found


def _with_ranges(work: Version, plan: Plan, known: Restored) -> Plan:
    """The plan with the ranges of its static sites: measured where there were none."""
    owners = _static_tensors(work, plan.quantize)
    missing = sorted({owner for owner in owners.values() if owner not in known.ranges})
    if missing:
        work.job.whole("measuring ranges of activations")
    measured = ranges(work.model, missing, work.job.data.fit, statistics_session, "minmax")
    found = {
        name: known.ranges[owner]
        if owner in known.ranges
        else ActivationRange(low=measured[owner].low, high=measured[owner].high)
        for name, owner in owners.items()
    }
    return plan.model_copy(update={"activations": found})


def _run(made: Made) -> Made:
    wanted = made.plan.restore
    return made if wanted is None else made.on(restored(made.version, wanted))


STEP = Step("restore", _run, lambda plan: ["quantized operators become float ones again"])
