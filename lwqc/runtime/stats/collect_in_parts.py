"""Statistics of a model that is run in parts, none of them larger than a bound on memory allows."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from typing import Any

import onnx_ir as ir

from lwqc.runtime.parts import Room, divided
from lwqc.runtime.stats.collect import Statistics
from lwqc.runtime.stats.collector import Collector, Feeds
from lwqc.runtime.stats.crossing import Crossing
from lwqc.runtime.stats.segmented_run import SegmentedRun


def collect_in_parts(
    model: ir.Model, collectors: Iterable[Collector[Any]], data: Iterable[Feeds], room: Room
) -> Statistics:
    """As `collect`, in one pass over the data. Raises InputError, also where no part fits."""
    wanted = list(dict.fromkeys(collectors))
    if not wanted:
        return Statistics({})
    places = _places(model)
    at = {c: max((places.get(n, 0) for n in c.tensors), default=0) for c in wanted}
    observed: dict[int, dict[str, int]] = {}
    for collector, place in at.items():
        observed.setdefault(place, {}).update(dict.fromkeys(collector.tensors, 0))
    parts = divided(model, data, room, observed)
    by_segment: dict[int, list[Collector[Any]]] = {}
    for collector, place in at.items():
        index = bisect_right(parts.segments, place, key=lambda s: s.stop)
        by_segment.setdefault(index, []).append(collector)
    last = max(by_segment)
    run = SegmentedRun(
        model, parts.segments[: last + 1], parts.data, parts.session, crossing=Crossing(0)
    )
    found: dict[Collector[Any], Any] = {}
    for index in range(last + 1):
        chosen = by_segment.get(index, [])
        statistics = run.advance(chosen)
        found |= {c: statistics[c] for c in chosen}
    return Statistics(found)


def _places(model: ir.Model) -> Mapping[str, int]:
    """By tensor, the position of the node that makes it; of an input, that of its first reader."""
    places: dict[str, int] = {}
    for i, node in enumerate(model.graph):
        for value in node.inputs:
            if value is not None and value.is_graph_input():
                places.setdefault(value.name or "", i)
        places |= {v.name or "": i for v in node.outputs}
    return places
