"""Gram matrices of the inputs that quantizable sites meet, collected when they are asked for."""

from __future__ import annotations

import shutil
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.graph.attention_maps import AttentionMaps, TokenWeights
from lwqc.graph.sites import Site, Use
from lwqc.model import io
from lwqc.plans.plan import SiteEntry
from lwqc.quant.gptq import AT_ONCE
from lwqc.quant.methods import DATA_METHODS, ROW_METHODS
from lwqc.runtime.parts import MAPPED_BYTES, Parts, Room, divided
from lwqc.runtime.stats.collector import Feeds
from lwqc.runtime.stats.column_mass import ColumnMass
from lwqc.runtime.stats.crossing import Crossing
from lwqc.runtime.stats.gram import Gram
from lwqc.runtime.stats.kept_crossing import KeptCrossing
from lwqc.runtime.stats.patches import conv_window
from lwqc.runtime.stats.segmented_run import SegmentedRun
from lwqc.runtime.stats.segments import Segment

# Of weights and matrices in one segment: a model of usual size is a single one.
_SEGMENT_BYTES = 768 << 20
_LARGE_SEGMENT_BYTES = 192 << 20
_SITE_BYTES = 2 << 30  # a site whose matrix is larger gets none
_KEPT_SEGMENTS = 2  # threads ask for neighbours at the same time
# Bytes that encoding takes at most: for each weight, for each of those that are in work at a time,
# and for each number of the Gram matrix.
_OF_WEIGHT, _IN_WORK, _OF_GRAM = 6, 12, 20
_WHILE_SUMMED = 2  # times the bytes of a Gram matrix: of one batch, in single precision

Matrix = NDArray[np.float64]


class SiteGrams:
    """Mean of x xᵀ per site, segment by segment of the model.

    When sites are asked for in graph order, each segment runs once over the data, starting from
    the activations that the one before it left. Asked for an earlier site than those at hand, it
    starts again at the model's beginning. Safe to use from several threads.
    """

    def __init__(
        self,
        model: ir.Model,
        sites: Sequence[Site],
        data: Iterable[Feeds],
        progress: Callable[[int, int], None] = lambda done, total: None,
        token_weights: bool = False,
        room: Room | None = None,
    ) -> None:
        """model, sites: of the float model, as `find_sites` gives them. data: re-iterable.

        token_weights: tokens count by how much attention reads them (RSQ), where that is known.
        room: for segments, their runs, and encoding the sites of one; usual ones if None.
        """
        self._model = model
        self._data = data
        self._progress = progress
        self._room = room
        self._folder: Path | None = None
        self._large = io.weight_bytes(model) > MAPPED_BYTES
        self._collectors = {s.name: _gram(s) for s in sites}
        if token_weights:
            self._collectors |= _weighted(model, sites, self._collectors)
        several = {s.name for s in sites if s.both_ways or len(_products(s)) > 1}
        self._unlike = {n for n in several if self._collectors[n] is None}
        self._bytes = {s.name: 8 * s.groups * s.k**2 for s in sites}
        self._weights = {s.name: s.size for s in sites}
        positions = _positions(model.graph)
        self._readers = {
            s.name: max(positions[_made(use.node)] for use in _products(s))
            for s in sites
            if _gram(s) is not None
        }
        self._main = {v.name for n in model.graph for v in n.outputs}
        self._main |= {v.name for v in (*model.graph.inputs, *model.graph.initializers.values())}
        self._run: SegmentedRun | None = None
        self._held: dict[int, dict[Gram, Matrix]] = {}
        self._lock = threading.Lock()

    def __call__(self, site: str) -> Matrix | None:
        """[convolution groups, K, K]; None where no matrix can be had (see `reason`)."""
        collector = self._collectors.get(site)
        if collector is None or self.reason(site):
            return None
        with self._lock:
            index = self._place(site)
            if index not in self._held:
                self._collect(index)
            return self._held[index][collector]

    def reason(self, site: str) -> str:
        """Why a site has no Gram matrix, or ""."""
        collector = self._collectors.get(site)
        if site in self._unlike:
            return "operators read its weight in different ways"
        if collector is None:
            return "it reads no rows that a matrix product or convolution multiplies"
        if not self._main.issuperset(collector.tensors):
            return "its input is inside the body of an If, Loop or Scan"
        if self._bytes[site] > _SITE_BYTES:
            return f"its Gram matrix would take {self._bytes[site] >> 20} MB"
        return ""

    @property
    def segments(self) -> Sequence[Segment]:
        """The parts that the model runs in, up to the last one that a site reads."""
        return self.parts.segments

    @cached_property
    def parts(self) -> Parts:
        """The same, with the batches of the data."""
        more = 1 if self._room is None else _WHILE_SUMMED
        observed: dict[int, dict[str, int]] = {}
        for site, collector in self._observed.items():
            at = observed.setdefault(self._readers[site], {})
            for tensor in collector.tensors:
                at.setdefault(tensor, 0)
            at[collector.tensor] += more * self._bytes[site]
        limit = _LARGE_SEGMENT_BYTES if self._large else _SEGMENT_BYTES
        room = self._room or limit
        parts = divided(self._model, self._data, room, observed, mapped=self._large)
        last = max(observed, default=0)
        return replace(parts, segments=[s for s in parts.segments if s.start <= last])

    def keep_in(self, folder: Path | None) -> None:
        """Where activations outlive this process, see `commit`; a run there goes on."""
        self._folder = folder
        self._run = None

    def in_parts(self, entries: Mapping[str, SiteEntry]) -> list[list[str]]:
        """Sites with a method that looks at data by segment, in the order of a run.

        Raises InputError where there is no room to encode one of them.
        """
        found: dict[int, list[str]] = {}
        for site, entry in entries.items():
            if entry.method in DATA_METHODS and not self.reason(site):
                found.setdefault(self._place(site), []).append(site)
        if self._room is not None:
            for names in found.values():
                for name, needed in self.encoding_bytes(names, entries).items():
                    self._room.check(needed, f"encoding {name}")
        return [names for _, names in sorted(found.items())]

    def encoding_bytes(
        self, part: Sequence[str], entries: Mapping[str, SiteEntry]
    ) -> dict[str, int]:
        """Bytes that encoding each site of a part takes, with the matrices of them all."""
        held = sum({self._collectors[n]: self._bytes[n] for n in part}.values())
        return {name: held + self._to_encode(name, entries[name]) for name in part}

    def observed(self, sites: Iterable[str]) -> list[tuple[str, Gram]]:
        """One site for each matrix that some of them look at."""
        found = {c: n for n in sites if (c := self._collectors[n]) is not None}
        return [(name, collector) for collector, name in found.items()]

    def position(self, site: str) -> int:
        """Of the node of the main graph that reads a site's weight, or holds the one that does."""
        return self._readers[site]

    def _to_encode(self, site: str, entry: SiteEntry) -> int:
        """Bytes that encoding a site takes, beside its Gram matrix."""
        count = self._weights[site]
        at_once = min(count, AT_ONCE) if entry.method in ROW_METHODS else count
        return _OF_WEIGHT * count + _IN_WORK * at_once + _OF_GRAM * self._bytes[site] // 8

    def commit(self) -> None:
        """Keep what a later process needs to go on behind the last segment; free its matrices."""
        self._held = {}
        if self._run is not None:
            self._run.commit()

    @property
    def _observed(self) -> dict[str, Gram]:
        return {n: c for n, c in self._collectors.items() if c is not None and not self.reason(n)}

    @cached_property
    def _wanted(self) -> dict[int, set[Gram]]:
        found: dict[int, set[Gram]] = {}
        for site, collector in self._observed.items():
            found.setdefault(self._place(site), set()).add(collector)
        return found

    def _place(self, site: str) -> int:
        """The segment with the node that reads the site's weight.

        Its input may come from an earlier one; it is observed where the weight is, so that an
        encoder's output, which all layers of a decoder read, does not lead back to the encoder.
        """
        return bisect_right(self.segments, self._readers[site], key=lambda s: s.stop)

    def _collect(self, index: int) -> None:
        """Run up to and including a segment, keeping the matrices of the last ones."""
        if self._run is None or self._run.position > index:
            self._run = self._begun(index)
        # With the ones before: of two threads, the one that wants the earlier may come second.
        many = _KEPT_SEGMENTS if self._room is None else 1
        kept = sorted(i for i in self._wanted if i <= index)[-many:]
        while (position := self._run.position) <= index:
            if position not in kept or position in self._held:
                self._run.advance()
                continue
            self._held = {i: held for i, held in self._held.items() if i in kept}
            self._held[position] = self._advance(self._run)

    def _begun(self, index: int) -> SegmentedRun:
        """A run from the beginning, or from where an earlier one was, if that is not too far."""
        crossing: Crossing | None = None
        if self._folder is not None:
            crossing = KeptCrossing(self._folder)
            if crossing.position > index:
                shutil.rmtree(self._folder)
                crossing = KeptCrossing(self._folder)
        elif self._room is not None:
            crossing = Crossing(0)
        return SegmentedRun(
            self._model,
            self.segments,
            self.parts.data,
            self.parts.session,
            crossing=crossing,
            progress=self._progress,
        )

    def _advance(self, run: SegmentedRun) -> dict[Gram, Matrix]:
        """Run the next segment with its matrices."""
        wanted = self._wanted[run.position]
        found = run.advance(wanted)
        matrices = {}
        for collector in wanted:
            total = found[collector]
            matrix = total.matrix
            matrix /= max(total.rows, 1)
            matrices[collector] = matrix if matrix.ndim == 3 else matrix[None]
        return matrices


def _positions(graph: ir.Graph) -> dict[str, int]:
    """By what a node makes, the position of the main graph's node that it is or that holds it."""
    found = {}
    for i, node in enumerate(graph):
        found[_made(node)] = i
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                found |= {_made(n): i for n in attribute.as_graph().all_nodes()}
            elif attribute.type == ir.AttributeType.GRAPHS:
                for body in attribute.as_graphs():
                    found |= {_made(n): i for n in body.all_nodes()}
    return found


def _made(node: ir.Node) -> str:
    """Name of a node's first output: unlike the node it is the same in a copy of the graph."""
    return node.outputs[0].name or ""


def _products(site: Site) -> list[Use]:
    """Uses that multiply; tied weights are also read by a Gather."""
    return [use for use in site.uses if use.node.op_type in ("MatMul", "Gemm", "Conv")]


def _gram(site: Site) -> Gram | None:
    """Of the rows that all products with the weight read; None if one reads it in another way."""
    found = [_of_use(use, site) for use in _products(site)]
    grams = [g for g in found if g is not None]
    return None if site.both_ways or len(grams) < len(found) else Gram.together(grams)


def _of_use(use: Use, site: Site) -> Gram | None:
    name = use.activation.name if use.activation is not None else None
    if not name or not _plain(use):
        return None
    if use.node.op_type == "Conv":
        return Gram(name, conv_window(use.node, site.shape))
    return Gram(name, features=site.k)


def _weighted(
    model: ir.Model, sites: Sequence[Site], plain: Mapping[str, Gram | None]
) -> dict[str, Gram]:
    """Collectors of the sites whose tokens an attention map weighs."""
    maps = AttentionMaps(model)
    found = {}
    for site in sites:
        collector, weights = plain[site.name], maps.token_weights(site)
        if collector is None or collector.window is not None or collector.also:
            continue
        if isinstance(weights, TokenWeights):
            mass = ColumnMass(weights.map, weights.tokens)
            found[site.name] = replace(collector, weights=mass)
    return found


def _plain(use: Use) -> bool:
    """The weight is the right operand, and the activation is read as it is."""
    transposed = use.node.attributes.get("transA")
    return use.index == 1 and (transposed is None or not transposed.as_int())
