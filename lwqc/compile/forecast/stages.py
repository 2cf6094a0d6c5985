"""What a job within a bound on memory does, stage by stage, and what that takes on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from math import prod
from pathlib import Path

import numpy as np
import onnx_ir as ir

from lwqc.compile.compared_in_parts import divided_pair
from lwqc.compile.forecast import rates
from lwqc.compile.forecast.rates import Running, Seconds
from lwqc.compile.version import Version
from lwqc.graph.cost import node_costs
from lwqc.graph.shapes import shapes_at
from lwqc.model import io
from lwqc.model.data_files import data_files
from lwqc.plans.plan import Plan, SiteEntry
from lwqc.runtime.parts import Parts, divided
from lwqc.runtime.stats.segments import Segment

_ALONE = 1 << 16  # bytes: weights of as many are in a file of their own
# Copies of an output, beside itself, for each of two models while they are compared in double
# precision, and while the first samples are held to what they should be; measured.
_COMPARED, _HELD_TO = 6, 8
_WIDENED = 2  # times weights of 16 bits: the CPU, which stands in for a device, makes 32 of them


@dataclass(frozen=True)
class Stage:
    """A part of a job.

    seconds: on the clock and of the processor, [2]. memory: bytes that this process has at most,
    beside its own. read, written: bytes of files. sent: to and from workers of a cluster, whose
    network's time is not counted.
    """

    name: str
    seconds: Seconds
    memory: int = 0
    read: int = 0
    written: int = 0
    sent: int = 0


class Workload:
    """Amounts of work, counted on the graph, times what a unit of each takes here."""

    def __init__(self, work: Version, plan: Plan) -> None:
        """work: opened with a bound on memory. plan: what is done to it."""
        self._work, self._plan = work, plan
        sizes = [{n: a.shape for n, a in feeds.items()} for feeds in work.job.data.fit]
        volumes = [sum(map(prod, of_one.values())) for of_one in sizes]
        self._times = sum(volumes) / max(volumes[0], 1)  # all samples as so many first ones
        self._samples = max(1, *next(iter(sizes[0].values()), ())[:1])  # in one batch
        self._shapes = shapes_at(work.model, sizes[0])
        self._known: dict[tuple[bool, int], Running] = {}
        graph = work.model.graph
        costs = node_costs(graph, self._shapes)
        whole = dict(zip(graph.all_nodes(), costs, strict=True))  # also those of bodies
        self._macs = [whole[node].macs or 0 for node in graph]
        self.unknown = sum(1 for cost in costs if cost.macs is None)
        self._site_rows = {
            name: self._macs[work.grams.position(name)] / site.size
            for name, site in work.sites.items()
            if not work.grams.reason(name)
        }

    def statistics(self) -> Stage | None:
        """Gram matrices, part by part; None where no method looks at data."""
        grams, work = self._work.grams, self._work
        sites = [*chain.from_iterable(grams.in_parts(self._plan.quantize))]
        if not sites:
            return None
        last = grams.segments[-1]
        found = self._run(grams.parts, sum(self._macs[: last.stop]))
        for name, collector in grams.observed(sites):
            site = work.sites[name]
            of_rows = self._site_rows[name] * self._times * site.groups * site.k**2
            inside = self._running(False, max(int(self._site_rows[name]), 1)).mac
            found = found + of_rows * (self._gram if collector.outside else inside)
        crossing = self._crossing(grams.segments)
        return Stage(
            "statistics",
            found + self._moved(io.weight_bytes(work.model) + crossing, crossing),
            max(s.held_bytes + s.activation_bytes for s in grams.segments),
            io.weight_bytes(work.model) + crossing,
            crossing,
        )

    def ranges(self) -> Stage | None:
        """Extremes of all activations, by which floats of 16 bits are chosen; None for others."""
        room = self._work.job.room
        if self._plan.floats is None or room is None:
            return None
        parts = divided(self._work.model, self._work.job.data.fit, room)
        segments = parts.segments
        crossing, read = self._crossing(segments), io.weight_bytes(self._work.model)
        return Stage(
            "ranges",
            self._run(parts, sum(self._macs)) + self._moved(read, crossing),
            max(s.held_bytes + s.activation_bytes for s in segments),
            read + crossing,
            crossing,
        )

    def encoding(self, workers: int = 0) -> Stage | None:
        """Codes of all weights; None where there are none.

        workers: threads of a cluster that take what takes long, part by part; 0 without one.
        """
        entries, sites, grams = self._plan.quantize, self._work.sites, self._work.grams
        if not entries:
            return None
        taken = self._encoding_seconds()
        parts = grams.in_parts(entries)
        on_data = [*chain.from_iterable(parts)]
        apart = [n for n, e in entries.items() if e.takes_long and n not in on_data]
        long = [*on_data, *apart]
        found = sum((taken[n] for n in entries if n not in long), np.zeros(2))
        for part in filter(None, (*parts, apart)):
            whole = sum((taken[n] for n in part), np.zeros(2))
            longest = max(taken[n][0] for n in part)
            share = max(whole[0] / workers, longest) if workers else whole[0]
            found = found + np.array([share, 0 if workers else whole[1]])
        kept = sum(entries[n].weight.size_bytes(sites[n].n, sites[n].k) for n in long)
        needed = [
            *(max(grams.encoding_bytes(part, entries).values()) for part in parts),
            *(2 * sites[n].float_bytes for n in entries if n not in on_data),
        ]
        read = sum(sites[n].float_bytes for n in entries)
        out = sum(4 * sites[n].size for n in long)
        out += sum(8 * sites[n].groups * sites[n].k ** 2 for n in on_data)
        return Stage(
            "encoding",
            found + self._moved(read, kept),
            max(needed),
            read,
            kept,
            out + kept if workers else 0,
        )

    def _encoding_seconds(self) -> dict[str, Seconds]:
        """By site; how many weights share a scale makes little difference."""
        entries, sites = self._plan.quantize, self._work.sites
        kinds = {n: (e.method, e.weight.kind, e.weight.bits, e.search) for n, e in entries.items()}
        largest = {kinds[n]: entries[n] for n in sorted(entries, key=lambda n: sites[n].size)}
        speed = {kind: rates.encoding(entry) for kind, entry in largest.items()}
        found = {}
        for name, kind in kinds.items():
            site = sites[name]
            found[name] = site.groups * speed[kind].seconds(site.n // site.groups, site.k)
        return found

    def writing(self, result: ir.Model) -> Stage:
        """The file of the result."""
        written = io.serialized_bytes(result)
        return Stage("writing", self._moved(0, written), 0, 0, written)

    def checking(self, candidate: ir.Model, *, written: bool = False) -> Stage:
        """Outputs of the original beside those of a candidate, on all data.

        written: by this job, and held to what it should be.
        """
        ours, theirs = divided_pair(self._work, _in_files(candidate))
        macs = sum(self._macs)
        found = self._run(ours, macs) + self._run(theirs, macs, coded=True)
        numbers = sum(prod(self._shapes.get(v.name or "", ())) for v in candidate.graph.outputs)
        crossing = self._crossing(ours.segments) + self._crossing(theirs.segments)
        read = io.weight_bytes(self._work.original.model) + io.weight_bytes(candidate) + crossing
        return Stage(
            "checking",
            found + numbers * self._times * self._compare + self._moved(read, crossing),
            sum(max(map(_alive, parts.segments)) for parts in (ours, theirs))
            + (_WIDENED * max(s.held_bytes for s in theirs.segments) if self._plan.floats else 0)
            + (_HELD_TO * max(s.output_bytes for s in ours.segments) if written else 0),
            read,
            crossing,
        )

    def _run(self, parts: Parts, macs: int, *, coded: bool = False) -> Seconds:
        """A model over all data; the first batch of each part is run in another process before.

        coded: with the plan's formats.
        """
        share = min((parts.batch or self._samples) / self._samples, 1.0)
        rows = max(int(max(self._site_rows.values(), default=1) * share), 1)
        running = self._running(coded, rows)
        found: Seconds = (
            len(parts.segments) * running.part + macs * (self._times + share) * running.mac
        )
        return found

    def _crossing(self, segments: Sequence[Segment]) -> int:
        """Bytes of the activations between parts."""
        made = {n for s in segments for n in s.outputs}
        numbers = sum(prod(self._shapes.get(n, ())) for s in segments for n in {*s.inputs} & made)
        return int(4 * numbers * self._times)

    def _moved(self, read: float, written: float) -> Seconds:
        found: Seconds = read * self._disk[0] + written * self._disk[1]
        return found

    @cached_property
    def _disk(self) -> tuple[Seconds, Seconds]:
        files = [f for f in data_files(self._work.begun.model) if Path(f).exists()]
        return rates.disk_seconds(max(files, key=lambda f: Path(f).stat().st_size, default=None))

    @cached_property
    def _gram(self) -> Seconds:
        return rates.gram_second()

    @cached_property
    def _compare(self) -> Seconds:
        return rates.compare_second()

    def _running(self, coded: bool, rows: int) -> Running:
        """Of the model; coded as its result computes, with what most weights of products have."""
        if (coded, rows) not in self._known:
            plan, entry = self._plan, self._most if coded else None
            plan = plan if coded else plan.model_copy(update={"floats": None})
            target = self._work.job.target
            self._known[coded, rows] = rates.running(target, plan, entry, rows)
        return self._known[coded, rows]

    @cached_property
    def _most(self) -> SiteEntry | None:
        sites = self._work.sites
        sizes: dict[str, int] = {}
        entries = {}
        for name, entry in self._plan.quantize.items():
            if sites[name].op != "Gather":
                text = entry.model_dump_json()
                entries[text] = entry
                sizes[text] = sizes.get(text, 0) + sites[name].size
        return entries[max(sizes, key=lambda text: sizes[text])] if sizes else None


def _alive(segment: Segment) -> int:
    return segment.held_bytes + segment.activation_bytes + _COMPARED * segment.output_bytes


def _in_files(model: ir.Model) -> ir.Model:
    """The model as it will be read, its large weights in a file that is not there yet."""
    copy = model.clone()
    for name, value in copy.graph.initializers.items():
        tensor = value.const_value
        if tensor is not None and tensor.nbytes >= _ALONE:
            value.const_value = ir.ExternalTensor(
                "later",
                0,
                tensor.nbytes,
                tensor.dtype,
                shape=ir.Shape(tensor.shape.numpy()),
                name=name,
            )
    return copy
