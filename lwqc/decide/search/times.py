"""Milliseconds that candidates take, from forms timed in small sessions and the whole model.

A site's time shrinks with the share of its weights that is left, by as much as a layer of half its
width saves: kernels do not get faster in proportion. What the float model takes beside its sites is
spread over the other operators: each type gets what the profiler tells of it, within a type by the
bytes that are written. A branch takes its share along. Predictions are corrected by what whole
candidates measure, see `lwqc.decide.search.pace`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lwqc.compile.candidates import with_formats
from lwqc.compile.run_times import run_ms, time_share
from lwqc.compile.timing import (
    activation_shapes,
    float_seconds,
    form_seconds,
    halved,
    operator_class,
)
from lwqc.compile.version import Version
from lwqc.decide.planning import unchanged
from lwqc.decide.search.log import Amount, SearchLog
from lwqc.decide.search.pace import TIME, Parts
from lwqc.decide.search.predicted import Predicted
from lwqc.decide.search.search_model import SearchModel
from lwqc.decide.search.space import Written
from lwqc.errors import InputError
from lwqc.graph.sites import Site
from lwqc.plans.plan import SiteEntry
from lwqc.runtime.profile import operator_times

_SITES = dict[str, list[tuple[Amount, Amount]]]
_CONSTANT = 0.1  # of a site's time, where a narrower one cannot be timed
_MOST_SITES = 0.95  # of the whole model's time that its sites may account for


@dataclass(frozen=True)
class Times(Predicted):
    """Milliseconds by number of a stored tensor and level, and by number of a node; when whole.

    constant: of those of a tensor, what stays however narrow it gets. gains: by level of fewer
    tokens, what is measured to be saved over what is predicted by the work that is left.
    """

    stored: Sequence[tuple[float, ...]]
    constant: Sequence[tuple[float, ...]]
    written: Sequence[float]
    gains: Sequence[float] = ()
    pace: Parts = field(default_factory=lambda: TIME)
    columns: int = len(TIME)

    def of_stored(self, number: int, level: int, share: float) -> tuple[float, ...]:
        """In float kernels or in low-bit ones, and what stays."""
        times, constant = self.stored[number], self.constant[number]
        time = times[min(level, len(times) - 1)]
        stays = constant[min(level, len(constant) - 1)]
        shrunk = (time - stays) * share
        wide = (shrunk, 0.0) if time == times[-1] else (0.0, shrunk)
        return (*wide, stays, 0.0, 0.0)

    def of_written(self, number: int, share: float, narrow: bool) -> tuple[float, ...]:
        """By the share of what is written, and whole."""
        time = self.written[number]
        return (0.0, 0.0, 0.0, time * share, time)

    def shorter(
        self, rows: NDArray[np.float64], left: NDArray[np.float64], level: int
    ) -> NDArray[np.float64]:
        """By as much as the whole model in float was measured to gain."""
        if level >= len(self.gains):
            return rows
        return rows * (1 - self.gains[level] * (1 - left))


def measured_times(found: SearchModel, log: SearchLog) -> Times:
    """Times in a space. Measured once for a log: resumed searches use the same."""
    times = log.fact("milliseconds, constant", lambda: _site_times(found.work, found), _SITES)
    share = log.fact("share of the float model", lambda: _float_share(found.work))
    whole = float(share) * reference_ms(found.work, log)
    by_type = log.fact("operators", lambda: _operator_ms(found.work), dict[str, Amount])
    space = found.space
    if any(len(times[s.name]) != len(s.entries) for s in space.stored if s.name in times):
        raise InputError("the search file has times of other formats: run without --resume")
    floats = sum(times[s.name][-1][0] for s in space.stored if s.name in times)
    scale = min(1.0, _MOST_SITES * whole / max(floats, 1e-12))
    of_stored = [times.get(s.name, [(0.0, 0.0)]) for s in space.stored]
    in_sites = {s.op for s in found.sites.values()}
    named = {op: t for op, t in by_type.items() if op not in in_sites}
    found_times = Times(
        [tuple(t * scale for t, _ in levels) for levels in of_stored],
        [tuple(stays * scale for _, stays in levels) for levels in of_stored],
        _shared_out(space.written, max(whole - floats * scale, 0.0), named),
    )
    return replace(found_times, gains=_gains(found, found_times))


def _gains(found: SearchModel, times: Times) -> list[float]:
    """What models with fewer tokens were measured to save, over what their work tells."""
    tokens = found.space.tokens
    if tokens is None:
        return []
    floats = [levels[-1] for levels in times.stored]
    alone = np.array([*floats, *times.written])
    saved = (1 - tokens.left[:-1]) @ alone / max(float(alone.sum()), 1e-12)
    return [
        (1 - short.time) / max(float(own), 1e-12)
        for short, own in zip(found.shorter, saved, strict=True)
    ]


def reference_ms(work: Version, log: SearchLog) -> float:
    """Of a run of the original. Measured once for a log."""
    return float(
        log.fact(
            "milliseconds of the original",
            lambda: run_ms(work, work.original.timed_session)[0],
        )
    )


def _float_share(work: Version) -> float:
    """Of the original's time that the model takes as it is searched: cleaned up, perhaps."""
    if work.model is work.original.model:
        return 1.0
    return time_share(work, with_formats(work, unchanged(work)).model)


def _operator_ms(work: Version) -> dict[str, float]:
    times = operator_times(with_formats(work, unchanged(work)).model, work.job.data.serve[0].feeds)
    return {op: time.milliseconds for op, time in times.items()}


def _shared_out(made: Sequence[Written], total: float, by_type: Mapping[str, float]) -> list[float]:
    """Milliseconds of all operators beside sites, shared out among them; of sites none."""
    names = [one.op if one.op in by_type else "" for one in made]
    elements: dict[str, float] = {}
    for name, one in zip(names, made, strict=True):
        if one.op:
            elements[name] = elements.get(name, 0.0) + one.elements
    times = {name: by_type[name] for name in elements if name}
    scale = min(1.0, total / max(math.fsum(times.values()), 1e-12))
    times = {name: time * scale for name, time in times.items()}
    times[""] = total - math.fsum(times.values())
    rates = {name: times[name] / max(count, 1e-12) for name, count in elements.items()}
    return [
        one.elements * rates[name] if one.op else 0.0 for name, one in zip(names, made, strict=True)
    ]


def _site_times(work: Version, found: SearchModel) -> dict[str, list[tuple[float, float]]]:
    """Milliseconds by site and level, and those that stay however narrow the site gets."""
    sites = work.sites
    timed = [s for s in found.space.stored if s.name in sites and sites[s.name].op != "Gather"]
    shapes = activation_shapes(work, work.job.data.serve[0])
    forms = _Forms(work)
    result: dict[str, list[tuple[float, float]]] = {}
    report = work.job.report("timing forms")
    for done, stored in enumerate(timed):
        site, shape = sites[stored.name], shapes.get(stored.name)
        if shape is None:
            continue
        whole = forms.milliseconds(site, stored.entries, shape, site.shape)
        half = halved(site, shape) if stored.cuts else None
        if half is None:
            result[stored.name] = [(t, _CONSTANT * t) for t in whole]
        else:
            narrow = forms.milliseconds(site, stored.entries, half[1], half[0])
            result[stored.name] = [(t, constant(t, n)) for t, n in zip(whole, narrow, strict=True)]
        report(done + 1, len(timed))
    return result


def constant(whole: float, quarter: float) -> float:
    """What stays of a time however few weights there are, given that of a quarter of them."""
    return min(max((4 * quarter - whole) / 3, 0.0), whole)


class _Forms:
    """Times of sites alone. Those of a class of sites are measured once."""

    def __init__(self, work: Version) -> None:
        self.work = work
        self._known: dict[tuple[Any, ...], tuple[float, float]] = {}
        self._floats: dict[tuple[Any, ...], float] = {}

    def milliseconds(
        self,
        site: Site,
        entries: Sequence[SiteEntry | None],
        shape: tuple[int, ...],
        weight: tuple[int, ...],
    ) -> list[float]:
        """By level. shape: of the activation. weight: of what is stored."""
        work, before = self.work, list[float]()
        by_level: list[float | None] = []
        plain = (operator_class(site), shape, weight)
        for entry in entries:
            if entry is None or work.job.target.form(site, entry, work.opset) == "Folded":
                by_level.append(None)  # the float kernel
                continue
            key = (*plain, entry.layout, entry.activation)
            if key not in self._known:
                self._known[key] = form_seconds(work, site, entry, shape, weight)
            before.append(self._known[key][0])
            by_level.append(self._known[key][1])
        if before:
            self._floats[plain] = sorted(before)[len(before) // 2]
        elif plain not in self._floats:
            self._floats[plain] = float_seconds(site, shape, weight)
        return [1e3 * (self._floats[plain] if t is None else t) for t in by_level]
