"""Statistics of a model and of a copy that changes, from one level of layers to the next."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import onnx_ir as ir

from lwqc.errors import InputError
from lwqc.runtime.stats.collect import Statistics, Totals, instrument
from lwqc.runtime.stats.collector import Array, Collector, Feeds, RunnerFactory
from lwqc.runtime.stats.crossing import HELD_BYTES, Crossing, as_crossed
from lwqc.runtime.stats.segments import part
from lwqc.runtime.stats.side_by_side import other_name, side_by_side
from lwqc.runtime.stats.stages import Stages

Levels = Sequence[Sequence[Collector[Any]]]


class PairedRun:
    """Runs both models level by level over all data, each level from where the last one ended.

    Between two levels the copy's weights may change, those of nodes behind what was observed.
    Activations that wait are in memory, beyond a limit in files; after a level whose activations
    take more than `Limits.traces`, or than the disk has, the next one starts at the beginning.
    """

    def __init__(
        self,
        original: ir.Model,
        changing: ir.Model,
        levels: Levels,
        data: Iterable[Feeds],
        make_runner: RunnerFactory,
    ) -> None:
        """levels: what each observes of the graph of both, see `side_by_side`. data: re-iterable.

        Both have sorted nodes; the second one has no inputs that the first one lacks.
        """
        self._sides = (
            _Side(original, {n: n for n in _values(original)}, levels),
            _Side(changing, {n: other_name(v) for n, v in _values(changing).items()}, levels),
        )
        self._given = {v.name or "" for v in original.graph.inputs}
        self._levels, self._data, self._make_runner = levels, data, make_runner
        self._level, self._start, self._count = 0, -1, 0
        self._crossing = Crossing(HELD_BYTES)

    def advance(self) -> Statistics:
        """Statistics of the next level. Raises InputError when the data is empty."""
        wanted = list(dict.fromkeys(self._levels[self._level]))
        before, after = self._kept(self._start), self._kept(self._level)
        both = self._part()
        instrumented, outputs = instrument(both, wanted, sorted(after - before))
        runner = self._make_runner(instrumented)
        totals = Totals(wanted, outputs)
        keeping = True
        for number, feeds in enumerate(self._feeds(both)):
            found = runner(feeds)
            known = {**feeds, **found} if self._start < 0 else found
            keeping = keeping and self._keep(number, known, before, after)
            totals.add(found)
            self._count = number + 1
        self._start = self._level if keeping else -1
        if not keeping:
            self._crossing = Crossing(HELD_BYTES)
        self._level += 1
        return totals.statistics()

    def _kept(self, stage: int) -> set[str]:
        return {name for side in self._sides for name in side.kept(stage)}

    def _part(self) -> ir.Model:
        """What lies between the activations that were kept and what the level needs, of both."""
        left, right = (side.inputs(self._start, self._level) for side in self._sides)
        shared = right & self._given
        original, changing = (
            part(side.model, sorted(inputs), side.outputs(self._start, self._level))
            for side, inputs in zip(self._sides, (left | shared, right), strict=True)
        )
        both = side_by_side(original, changing, own=right - shared)
        for value in both.graph.inputs:
            crossed = self._crossing.get(value.name or "", 0) if self._start >= 0 else None
            if crossed is not None and value.name not in self._given:
                as_crossed(value, crossed)
        return both

    def _feeds(self, both: ir.Model) -> Iterator[Feeds]:
        if self._start < 0:
            yield from self._data
            return
        names = [v.name or "" for v in both.graph.inputs]
        for number in range(self._count):
            arrays = ((name, self._crossing.get(name, number)) for name in names)
            yield {name: array for name, array in arrays if array is not None}

    def _keep(
        self,
        number: int,
        known: Mapping[str, Array],
        before: set[str],
        after: set[str],
    ) -> bool:
        """Keep what the next levels read, and nothing else; or tell that there is no room."""
        try:
            for name in after & known.keys():
                self._crossing.put(name, number, known[name])
        except InputError:
            return False
        for name in before - after:
            self._crossing.drop(name, number)
        return True


class _Side:
    """One of the two models, with the names that its values have in the graph of both."""

    def __init__(self, model: ir.Model, joint: Mapping[str, str], levels: Levels) -> None:
        self.model, self._joint = model, joint
        tensors = [{name for c in level for name in c.tensors} for level in levels]
        self._observed = [[n for n, other in joint.items() if other in ts] for ts in tensors]
        self._stages = Stages(model, self._observed)

    def kept(self, stage: int) -> set[str]:
        """See `Stages.kept`; by the names in the graph of both."""
        return {self._joint[name] for name in self._stages.kept(stage)}

    def outputs(self, start: int, stop: int) -> list[str]:
        """What the part that begins behind one stage and ends with another has to give."""
        new = self._stages.kept(stop) - self._stages.kept(start)
        return [*self._observed[stop], *sorted(new)]

    def inputs(self, start: int, stop: int) -> set[str]:
        """What of the values that were kept that part reads."""
        return self._stages.read(self.outputs(start, stop), self._stages.kept(start))


def _values(model: ir.Model) -> dict[str, ir.Value]:
    """Values of the main graph by name."""
    graph = model.graph
    made = (v for node in graph for v in node.outputs)
    values = (*graph.inputs, *graph.initializers.values(), *made)
    return {v.name: v for v in values if v.name}
