"""Milliseconds that candidates take, from forms timed in small sessions and the whole model.

A site's time shrinks with the share of its weights that is left. What the original takes beside
its sites is spread over the other operators by the bytes that they write; a branch takes its share
along. Predictions are scaled by what a whole candidate measures (`Search.verified`).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from lwqc.measure import medians_ms
from lwqc.search_items import SearchModel
from lwqc.search_log import SearchLog
from lwqc.timing import activation_shapes, float_seconds, form_seconds, operator_class
from lwqc.workspace import Workspace

_MOST_SITES = 0.95  # of the whole model's time that its sites may account for


def measure_times(found: SearchModel, log: SearchLog) -> None:
    """Set the times of the space. Measured once for a log: resumed searches use the same."""
    times = log.fact("milliseconds", lambda: _site_times(found.work, found))
    whole = log.fact("whole milliseconds", lambda: _whole(found.work))
    space = found.space
    floats = sum(times[s.name][-1] for s in space.stored if s.name in times)
    scale = min(1.0, _MOST_SITES * whole / max(floats, 1e-12))
    space.stored = tuple(
        dataclasses.replace(s, milliseconds=tuple(t * scale for t in times[s.name]))
        if s.name in times
        else s
        for s in space.stored
    )
    other = max(whole - floats * scale, 0.0)
    total = max(math.fsum(b.written for b in space.beside), 1e-12)
    space.beside = tuple(
        dataclasses.replace(b, milliseconds=other * b.written / total) for b in space.beside
    )
    space.forget()


def _whole(work: Workspace) -> float:
    return medians_ms([work.timed_reference], work.served[0].feeds)[0]


def _site_times(work: Workspace, found: SearchModel) -> dict[str, list[float]]:
    """Milliseconds by site and level; those of a class of sites are measured once."""
    sites = work.sites
    timed = [s for s in found.space.stored if s.name in sites and sites[s.name].op != "Gather"]
    shapes = activation_shapes(work, work.served[0])
    known: dict[tuple[Any, ...], tuple[float, float]] = {}
    floats: dict[tuple[Any, ...], float] = {}
    result: dict[str, list[float]] = {}
    report = work.report("timing forms")
    for done, stored in enumerate(timed):
        site, shape = sites[stored.name], shapes.get(stored.name)
        if shape is None:
            continue
        before: list[float] = []
        by_level: list[float | None] = []
        for entry in stored.entries:
            if entry is None or work.target.form(site, entry, work.opset) == "Folded":
                by_level.append(None)  # the float kernel
                continue
            key = (operator_class(site), entry.layout, entry.activation, shape)
            if key not in known:
                known[key] = form_seconds(work, site, entry, shape)
            before.append(known[key][0])
            by_level.append(known[key][1])
        plain = (operator_class(site), shape)
        if before:
            floats[plain] = sorted(before)[len(before) // 2]
        elif plain not in floats:
            floats[plain] = float_seconds(site, shape)
        result[stored.name] = [1e3 * (floats[plain] if t is None else t) for t in by_level]
        report(done + 1, len(timed))
    return result
