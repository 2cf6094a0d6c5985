"""Statistics of a model that does not fit in memory: one segment after the other over all data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import length_hint
from typing import Any

import onnx_ir as ir

from lwqc.errors import InputError
from lwqc.runtime.stats.collect import NO_SAMPLE, Statistics, Totals, instrument
from lwqc.runtime.stats.collector import Array, Collector, Feeds, Runner, RunnerFactory
from lwqc.runtime.stats.crossing import HELD_BYTES, Crossing, as_crossed
from lwqc.runtime.stats.segments import Segment

Progress = Callable[[int, int], None]


class SegmentedRun:
    """Runs the segments of a model in order, each over all data, in a session of its own.

    The data is iterated once, by the first segment; what later ones need of it is kept with the
    activations that cross, until the last segment that reads it. Memory: the largest segment, its
    statistics, and what the crossing activations may take.
    """

    def __init__(
        self,
        model: ir.Model,
        segments: Sequence[Segment],
        data: Iterable[Feeds],
        make_runner: RunnerFactory,
        *,
        crossing: Crossing | None = None,
        outputs: Sequence[str] = (),
        progress: Progress = lambda done, total: None,
    ) -> None:
        """crossing: what holds activations; where an earlier run left off, it goes on from there.

        outputs: of the model, which `results` gives. progress: called with runs done and their
        number, if `data` has a length.
        """
        self._crossing = Crossing(HELD_BYTES) if crossing is None else crossing
        self.position = self._crossing.position
        self._model = model
        self._segments = segments
        self._data = data
        self._make_runner = make_runner
        self._wanted = outputs
        self._count = self._crossing.feeds or length_hint(data, 0)
        self._progress = progress
        self._given = {v.name or "" for v in model.graph.inputs}

    def advance(self, collectors: Iterable[Collector[Any]] = ()) -> Statistics:
        """Run the next segment and return statistics of tensors that it reads or computes.

        Raises InputError for a tensor that it lacks, and when the data is empty.
        """
        segment, wanted = self._segments[self.position], list(dict.fromkeys(collectors))
        needed = {n for s in self._segments[self.position + 1 :] for n in s.inputs}
        needed |= set(self._wanted)
        keep = [n for n in segment.outputs if n in needed]
        runner, outputs = self._runner(segment, wanted, keep)
        totals = Totals(wanted, outputs)
        done = 0
        for done, feeds in enumerate(self._feeds(segment, needed), start=1):
            found = runner(feeds)
            for name in keep:
                self._crossing.put(name, done - 1, found.pop(name))
            totals.add(found)
            for name in segment.inputs:
                if name not in needed:
                    self._crossing.drop(name, done - 1)
            self._report(done)
        if not done:
            raise InputError(NO_SAMPLE)
        self._count = done
        self.position += 1
        return totals.statistics()

    def commit(self) -> None:
        """Let the crossing activations outlive this process, if they are kept for that."""
        self._crossing.commit(self.position, self._count)

    def results(self) -> Iterator[dict[str, Array]]:
        """Run what is left, and give the model's outputs feed by feed."""
        while self.position < len(self._segments) - 1:
            self.advance()
        segment = self._segments[-1]
        made = [n for n in self._wanted if n in segment.outputs]
        runner, _ = self._runner(segment, [], made)
        for number, feeds in enumerate(self._feeds(segment, set(self._wanted))):
            found = runner(feeds)
            yield {n: found[n] if n in found else self._kept(n, number) for n in self._wanted}
            self._report(number + 1)

    def _kept(self, name: str, number: int) -> Array:
        array = self._crossing.get(name, number)
        if array is None:
            raise InputError(f"{name}: this output depends on no input, or is left to its default")
        return array

    def _report(self, done: int) -> None:
        if self._count:
            total = len(self._segments) * self._count
            self._progress(min(self.position * self._count + done, total), total)

    def _feeds(self, segment: Segment, needed: set[str]) -> Iterator[Feeds]:
        if self.position == 0:
            for number, feeds in enumerate(self._data):
                for name in needed & self._given & feeds.keys():
                    self._crossing.put(name, number, feeds[name])
                yield feeds
            return
        for number in range(self._count):
            arrays = ((name, self._crossing.get(name, number)) for name in segment.inputs)
            yield {name: array for name, array in arrays if array is not None}

    def _runner(
        self, segment: Segment, collectors: Sequence[Collector[Any]], keep: Sequence[str]
    ) -> tuple[Runner, list[list[str]]]:
        """A session of the segment with its statistics."""
        if not collectors and not keep:
            return lambda feeds: {}, []
        observed = [name for c in collectors for name in c.tensors]
        part = segment.model(self._model, [*keep, *observed])
        for value in part.graph.inputs:
            crossed = self._crossing.get(value.name or "", 0) if self.position else None
            if crossed is not None and value.name not in self._given:
                as_crossed(value, crossed)
        instrumented, outputs = instrument(part, collectors, keep)
        return self._make_runner(instrumented), outputs
