"""What a search over whole plans can choose: formats of sites, widths, branches, tokens.

One interface for all of them: an item has levels, from the strongest to untouched, each with a
predicted error (relative squared error at the model's outputs) and, with the levels of all other
items, a cost in bytes and in what else is bounded. Costs do not add up, as a narrow layer also has
fewer weights to store in few bits: `SearchSpace.cost` counts them exactly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lwqc.decide.allocators.evolutionary import Candidate
from lwqc.decide.search.pace import Parts
from lwqc.decide.search.predicted import Predicted
from lwqc.decide.search.trial_model import Cut, Mask, axis_masks, matrix_masks
from lwqc.plans.plan import SiteEntry

Kind = Literal["format", "width", "branch", "token"]
Cost = Mapping[str, float]  # of a candidate: `size_bytes`, and what else is predicted
SIZE = "size_bytes"


@dataclass(frozen=True)
class Item:
    """Something that is decided. labels, errors: by level, the strongest first; the last is none.

    name: of a site (or several that go together), a group, a branch, or `tokens`.
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
class Stored:
    """A stored tensor whose bytes depend on the candidate.

    item: of its format, if it is a site, with `entries` by level. users: for each node that reads
    it, the items of branches any of which takes that node along. macs: of a site's nodes. op:
    operator of a site.
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
    below whose highest level the elements are bytes.
    """

    op: str
    elements: float
    shape: tuple[int, ...] = ()
    cuts: tuple[Cut, ...] = ()
    branches: frozenset[int] = frozenset()
    codes: int | None = None
    macs: float = 0.0


@dataclass(frozen=True, eq=False)
class Tokens:
    """The item that says how many tokens the model goes on with.

    held: items of branches that stay, by level, as their attention chooses tokens. left: share of
    the work [levels, stored tensors and then nodes].
    """

    item: int
    held: tuple[frozenset[int], ...]
    left: NDArray[np.float64]


@dataclass
class SearchSpace:
    """Items, and what candidates cost.

    keeps: item of a width -> mask of channels by level. fixed_bytes: what no item changes.
    overhead: operator and layout -> bytes beside codes and scales, per site and per zero point.
    costs: those beside bytes, see `predict`. pace: what each part of such a cost counts, see
    `lwqc.decide.search.pace`. left_out: what could not become an item, with the reason. tokens:
    None where their number is not chosen.
    """

    items: tuple[Item, ...]
    stored: tuple[Stored, ...]
    keeps: Mapping[int, tuple[Mask, ...]]
    fixed_bytes: float = 0.0
    overhead: Mapping[tuple[str, str], tuple[float, float]] = field(default_factory=dict)
    written: tuple[Written, ...] = ()
    costs: dict[str, Predicted] = field(default_factory=dict)
    pace: dict[str, Parts] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    tokens: Tokens | None = None
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

    def effective(self, candidate: Candidate) -> Candidate:
        """The same with the branches kept whose attention chooses tokens."""
        if self.tokens is None:
            return candidate
        held = self.tokens.held[candidate[self.tokens.item]]
        return tuple(self.items[i].top if i in held else c for i, c in enumerate(candidate))

    def predict(self, cost: str, predicted: Predicted) -> None:
        """Candidates have that cost too from now on."""
        self.costs[cost], self.pace[cost] = predicted, predicted.pace
        self.forget()

    def forget(self) -> None:
        """Costs are counted anew, as something else is known of them."""
        self._known.clear()
        self._last = None

    def cost(self, candidate: Candidate) -> Cost:
        """Of the whole model."""
        size = self.fixed_bytes + float(self._counted(candidate).sum(0)[0])
        others = {n: float(self.parts(candidate, n) @ pace) for n, pace in self.pace.items()}
        return {SIZE: size, **others}

    def parts(self, candidate: Candidate, cost: str) -> Parts:
        """Parts of a candidate's cost beside bytes, as `pace` counts them."""
        rows, first = self._counted(candidate), 1
        for name, predicted in self.costs.items():
            if name == cost:
                own = rows[:, first : first + predicted.columns]
                if self.tokens is not None:
                    level = candidate[self.tokens.item]
                    own = predicted.shorter(own, self.tokens.left[level][:, None], level)
                return predicted.parts(own, len(self.stored))
            first += predicted.columns
        raise KeyError(cost)

    def _counted(self, candidate: Candidate) -> NDArray[np.float64]:
        """All parts of the cost. What is the same as in the last candidate is not redone."""
        candidate = self.effective(candidate)
        if self._last is not None and self._last[0] == candidate:
            return self._last[1]
        if self._last is None:
            rows = [self._part(i, candidate) for i in range(self._count)]
            parts = np.array(rows).reshape(-1, self._columns)
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

    @property
    def _columns(self) -> int:
        return 1 + sum(p.columns for p in self.costs.values())

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
        """Bytes, and what the other costs are predicted from."""
        if part >= len(self.stored):
            return self._of_written(part - len(self.stored), candidate)
        tensor = self.stored[part]
        if tensor.users and all(any(candidate[b] == 0 for b in u) for u in tensor.users):
            return (0.0,) * self._columns
        level = 0 if tensor.item is None else candidate[tensor.item]
        key = (part, level, *(candidate[cut.item] for cut in tensor.cuts))
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = self._one(tensor, candidate)
        size, share = known
        others = (p.of_stored(part, level, share) for p in self.costs.values())
        return (size, *chain.from_iterable(others))

    def _of_written(self, number: int, candidate: Candidate) -> tuple[float, ...]:
        made = self.written[number]
        if any(candidate[b] == 0 for b in made.branches):
            return (0.0,) * self._columns
        key = (len(self.stored) + number, *(candidate[cut.item] for cut in made.cuts))
        known = self._known.get(key)
        if known is None:
            share = self._share(made.shape, axis_masks(made.cuts, candidate, self.keeps))
            known = self._known[key] = (0.0, share)
        narrow = made.codes is not None and candidate[made.codes] < self.items[made.codes].top
        others = (p.of_written(number, known[1], narrow) for p in self.costs.values())
        return (0.0, *chain.from_iterable(others))

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
        candidate = self.effective(candidate)
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
