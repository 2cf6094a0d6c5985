"""All statistics of a model, collected part by part."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from operator import length_hint
from typing import Any

import onnx_ir as ir

from lwqc.errors import InputError
from lwqc.runtime.stats.collect import NO_SAMPLE, Statistics, instrument
from lwqc.runtime.stats.collector import Collector, Feeds, RunnerFactory
from lwqc.runtime.stats.crossing import HELD_BYTES, Crossing
from lwqc.runtime.stats.segmented_run import Progress, SegmentedRun
from lwqc.runtime.stats.segments import split


def collect_in_segments(
    model: ir.Model,
    collectors: Iterable[Collector[Any]],
    data: Iterable[Feeds],
    make_runner: RunnerFactory,
    max_bytes: int,
    progress: Progress = lambda done, total: None,
    *,
    held_bytes: int = HELD_BYTES,
) -> Statistics:
    """What `collect` returns, with at most `max_bytes` of weights in memory at a time."""
    made = {v.name: i for i, node in enumerate(model.graph) for v in node.outputs}
    homes: dict[Collector[Any], int] = {
        c: max((made.get(name, 0) for name in c.tensors), default=0) for c in collectors
    }
    if not homes:
        return Statistics({})
    instrument(model, list(homes))  # refuses tensors that the main graph lacks
    feeds = iter(data)
    first = next(feeds, None)
    if first is None:
        raise InputError(NO_SAMPLE)
    observed: dict[int, dict[str, int]] = {}
    for collector, home in homes.items():
        observed.setdefault(home, {}).update(dict.fromkeys(collector.tensors, 0))
    sizes = {name: array.shape for name, array in first.items()}
    segments = split(model, max_bytes, sizes, observed)
    stops = [s.stop for s in segments]
    placed = {c: bisect_right(stops, home) for c, home in homes.items()}
    segments = segments[: max(placed.values()) + 1]
    run = SegmentedRun(
        model, segments, _Again(first, feeds, data), make_runner,
        crossing=Crossing(held_bytes), progress=progress,
    )  # fmt: skip
    found: dict[Collector[Any], Any] = {}
    for i in range(len(segments)):
        here = [c for c, place in placed.items() if place == i]
        statistics = run.advance(here)
        found |= {c: statistics[c] for c in here}
    return Statistics(found)


class _Again:
    """Data whose first feeds were looked at already."""

    def __init__(self, first: Feeds, rest: Iterator[Feeds], data: Iterable[Feeds]) -> None:
        self._first, self._rest, self._data = first, rest, data

    def __iter__(self) -> Iterator[Feeds]:
        yield self._first
        yield from self._rest

    def __length_hint__(self) -> int:
        return length_hint(self._data, 0)
