"""What a search over whole plans can choose: formats of sites, widths of groups, branches.

One interface for all of them: an item has levels, from the strongest to untouched, each with a
predicted error (relative squared error at the model's outputs) and, with the levels of all other
items, a cost in bytes, multiply-accumulates and milliseconds. Costs do not add up, as a narrow
layer also has fewer weights to store in few bits: `SearchSpace.cost` counts them exactly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lwqc.decide.allocators.evolutionary import Candidate
from lwqc.decide.search.pace import TIME, Parts
from lwqc.decide.search.trial_model import Cut, Mask, axis_masks, matrix_masks
from lwqc.plans.plan import SiteEntry

Kind = Literal["format", "width", "branch"]
_TIMES = slice(2, 2 + len(TIME))
_GONE = (0.0,) * (2 + len(TIME) + 2)
_FLOAT = 4  # bytes of an element


@dataclass(frozen=True)
class Item:
    """Something that is decided. labels, errors: by level, the strongest first; the last is none.

    name: of a site (or several that go together), a group or a branch.
    """

    name: str
    kind: Kind
    labels: tuple[str, ...]
    errors: tuple[float, ...]

    @property
    def top(self) -> int:
        """The level that leaves it as it is."""
        return len(self.labels) - 1


@dataclass(frozen=True)
class Cost:
    """Of a candidate: bytes of the file, multiply-accumulates and milliseconds of one run, memory.

    Time and memory are 0 where nothing is known of them, see `search_times`, `search_memory`.
    """

    size_bytes: float
    macs: float
    latency_ms: float = 0.0
    memory_bytes: float = 0.0


@dataclass(frozen=True)
class Stored:
    """A stored tensor whose bytes depend on the candidate.

    item: of its format, if it is a site, with `entries` by level. users: for each node that reads
    it, the items of branches any of which takes that node along. macs: of a site's nodes.
    milliseconds: of a site's nodes by level, when whole. constant: of these, those that stay
    however narrow it gets. held: bytes in memory, when whole. op: operator of a site.
    """

    name: str
    shape: tuple[int, ...]
    itemsize: int
    cuts: tuple[Cut, ...] = ()
    item: int | None = None
    entries: tuple[SiteEntry | None, ...] = (None,)
    flipped: bool = False
    users: tuple[frozenset[int], ...] = ()
    macs: float = 0.0
    milliseconds: tuple[float, ...] = (0.0,)
    constant: tuple[float, ...] = (0.0,)
    held: tuple[float, ...] = (0.0,)
    op: str = ""

    @property
    def signature(self) -> tuple[int, ...]:
        """Items that its bytes depend on, beside branches."""
        own = () if self.item is None else (self.item,)
        return (*own, *(cut.item for cut in self.cuts))


@dataclass(frozen=True)
class Written:
    """What a node writes, and what the node costs unless it belongs to a site.

    op: of the node, "" of a site's. elements, shape, cuts: of its outputs, which shrink together;
    cuts of the first. branches: items of branches any of which takes the node along. codes: item
    below whose highest level the elements are bytes. milliseconds: when whole.
    """

    op: str
    elements: float
    shape: tuple[int, ...] = ()
    cuts: tuple[Cut, ...] = ()
    branches: frozenset[int] = frozenset()
    codes: int | None = None
    macs: float = 0.0
    milliseconds: float = 0.0


@dataclass
class SearchSpace:
    """Items, and what candidates cost.

    keeps: item of a width -> mask of channels by level. fixed: what no item changes. overhead:
    operator and layout -> bytes beside codes and scales, per site and per zero point. pace: what
    each part of a candidate's time, and of its memory, counts, see `search_pace`. together: which
    of `written` [moments, written] are in memory at once, with 1. left_out: what could not become
    an item, with the reason.
    """

    items: tuple[Item, ...]
    stored: tuple[Stored, ...]
    keeps: Mapping[int, tuple[Mask, ...]]
    fixed: Cost = Cost(0, 0)
    overhead: Mapping[tuple[str, str], tuple[float, float]] = field(default_factory=dict)
    written: tuple[Written, ...] = ()
    together: NDArray[np.float64] | None = None
    pace: dict[str, Parts] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    _last: tuple[Candidate, NDArray[np.float64]] | None = field(default=None, repr=False)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of levels by item."""
        return tuple(len(item.labels) for item in self.items)

    @property
    def top(self) -> Candidate:
        """Nothing is changed."""
        return tuple(item.top for item in self.items)

    def of_kind(self, kind: Kind) -> list[int]:
        """Numbers of the items of a kind."""
        return [i for i, item in enumerate(self.items) if item.kind == kind]

    def forget(self) -> None:
        """Costs are counted anew, as `overhead` or times have changed."""
        self._known.clear()
        self._last = None

    def cost(self, candidate: Candidate) -> Cost:
        """Of the whole model."""
        total = self._counted(candidate).sum(0)
        fixed = self.fixed
        return Cost(
            fixed.size_bytes + float(total[0]),
            fixed.macs + float(total[1]),
            *(
                float(self.parts(candidate, kind) @ self.pace[kind]) if kind in self.pace else 0.0
                for kind in ("latency_ms", "memory_bytes")
            ),
        )

    def parts(self, candidate: Candidate, kind: str) -> Parts:
        """Parts of a candidate's `latency_ms` [5] or `memory_bytes` [3] as `pace` counts them.

        Of memory: bytes of weights, the most that is written and still needed at a time, and 1.
        """
        counted = self._counted(candidate)
        if kind == "latency_ms":
            return np.asarray(counted[:, _TIMES].sum(0))
        alive = counted[len(self.stored) :, -1]
        peak = 0.0 if self.together is None else (self.together @ alive).max(initial=0.0)
        return np.array([counted[:, -2].sum(), peak, 1.0])

    def _counted(self, candidate: Candidate) -> NDArray[np.float64]:
        """All parts of the cost. What is the same as in the last candidate is not redone."""
        if self._last is not None and self._last[0] == candidate:
            return self._last[1]
        if self._last is None:
            rows = [self._part(i, candidate) for i in range(self._count)]
            parts = np.array(rows).reshape(-1, len(_GONE))
        else:
            before, parts = self._last
            pairs = enumerate(zip(before, candidate, strict=True))
            changed = {part for i, (a, b) in pairs if a != b for part in self._parts_of[i]}
            for part in changed:
                parts[part] = self._part(part, candidate)
        self._last = (candidate, parts)
        return parts

    @property
    def _count(self) -> int:
        return len(self.stored) + len(self.written)

    @cached_property
    def _known(self) -> dict[tuple[int, ...], tuple[float, float]]:
        return {}

    @cached_property
    def _parts_of(self) -> list[list[int]]:
        """Parts of the cost that an item changes: stored tensors, then other operators."""
        found: list[list[int]] = [[] for _ in self.items]
        for index, tensor in enumerate(self.stored):
            for item in {*tensor.signature, *frozenset().union(*tensor.users)}:
                found[item].append(index)
        for index, made in enumerate(self.written, len(self.stored)):
            own = () if made.codes is None else (made.codes,)
            for item in {*(cut.item for cut in made.cuts), *made.branches, *own}:
                found[item].append(index)
        return found

    def _part(self, part: int, candidate: Candidate) -> tuple[float, ...]:
        """Bytes, multiply-accumulates, parts of the time and of the memory."""
        if part >= len(self.stored):
            made = self.written[part - len(self.stored)]
            if any(candidate[b] == 0 for b in made.branches):
                return _GONE
            key = (part, *(candidate[cut.item] for cut in made.cuts))
            known = self._known.get(key)
            if known is None:
                share = self._share(made.shape, axis_masks(made.cuts, candidate, self.keeps))
                known = self._known[key] = (0.0, share)
            share, time = known[1], made.milliseconds
            narrow = made.codes is not None and candidate[made.codes] < self.items[made.codes].top
            alive = made.elements * share * (1 if narrow else _FLOAT)
            rest = (0.0, 0.0, 0.0, time * share, time, 0.0, alive)
            return 0.0, made.macs * share, *rest
        tensor = self.stored[part]
        if tensor.users and all(any(candidate[b] == 0 for b in u) for u in tensor.users):
            return _GONE
        level = 0 if tensor.item is None else candidate[tensor.item]
        key = (part, level, *(candidate[cut.item] for cut in tensor.cuts))
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = self._one(tensor, candidate)
        size, share = known
        times = tensor.milliseconds
        time = times[min(level, len(times) - 1)]
        stays = tensor.constant[min(level, len(tensor.constant) - 1)]
        shrunk = (time - stays) * share
        wide = (shrunk, 0.0) if time == times[-1] else (0.0, shrunk)
        held = tensor.held[min(level, len(tensor.held) - 1)]
        return size, tensor.macs * share, *wide, stays, 0.0, 0.0, held * share, 0.0

    @cached_property
    def _branches(self) -> list[int]:
        return self.of_kind("branch")

    def _one(self, tensor: Stored, candidate: Candidate) -> tuple[float, float]:
        """Bytes of a tensor, and the share of its elements that is left."""
        masks = axis_masks(tensor.cuts, candidate, self.keeps)
        share = self._share(tensor.shape, masks)
        entry = None if tensor.item is None else tensor.entries[candidate[tensor.item]]
        if entry is None:
            return round(share * math.prod(tensor.shape)) * tensor.itemsize, share
        rows, columns = matrix_masks(tensor.shape, tensor.flipped, masks)
        n, k = int(rows.sum()), int(columns.sum())
        site, zero = self.overhead.get((tensor.op, entry.layout), (0.0, 0.0))
        return entry.size_bytes(n, k) + site + zero * zero_points(entry, n, k), share

    @staticmethod
    def _share(shape: Sequence[int], masks: Mapping[int, Mask]) -> float:
        """Of elements that are left."""
        return math.prod(int(m.sum()) / max(shape[axis], 1) for axis, m in masks.items())

    def predicted(self, candidate: Candidate) -> float:
        """Sum of the errors that items have alone; those inside removed branches do not count."""
        closed = {i for i in self._branches if candidate[i] == 0}
        return sum(
            item.errors[level]
            for i, (item, level) in enumerate(zip(self.items, candidate, strict=True))
            if not (closed and self._inside.get(i, frozenset()) & closed)
        )

    @cached_property
    def _inside(self) -> dict[int, frozenset[int]]:
        """Branches that hold an item: all tensors that it changes go with each of them."""
        found: dict[int, frozenset[int]] = {}
        for tensor in self.stored:
            holders = frozenset.intersection(*tensor.users) if tensor.users else frozenset()
            for item in tensor.signature:
                found[item] = found[item] & holders if item in found else holders
        return found


def zero_points(entry: SiteEntry, n: int, k: int) -> int:
    """How many a weight [N, K] has."""
    return 0 if entry.weight.symmetric else n * entry.weight.blocks(k)


def flipped(shape: Sequence[int], transposes: int, transposed_use: bool) -> bool:
    """Whether a site's matrix [N, K] is the transposed stored tensor."""
    return len(shape) == 2 and bool((transposes + transposed_use) % 2)


def widths(order: NDArray[np.intp], step: int, least: float) -> list[Mask]:
    """Masks of channels that stay, from few to all; multiples of `step`, down to a share `least`.

    order: channels, the least important first. About eight widths.
    """
    size = len(order)
    wanted = (math.ceil(size * share / step) * step for share in np.linspace(least, 1, 8))
    masks = []
    for kept in sorted({min(max(w, 1), size) for w in wanted}):
        mask = np.ones(size, np.bool_)
        mask[order[: size - kept]] = False
        masks.append(mask)
    return masks
