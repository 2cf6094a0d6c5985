"""How many channels each group loses, so that a model meets a budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lwqc.graph.pruned_cost import Keep

Cost = Callable[[Keep], int]


@dataclass(frozen=True)
class Candidate:
    """A group that may lose channels.

    order [size]: the least important first. price [size]: what each costs in that order, in the
    unit in which groups are compared. step: channels are kept in multiples of it. least: channels
    that stay at least.
    """

    name: str
    order: NDArray[np.intp]
    price: NDArray[np.float64]
    step: int = 1
    least: int = 1

    @property
    def size(self) -> int:
        """Number of channels."""
        return len(self.order)

    def keep(self, removed: int) -> NDArray[np.bool_]:
        """Mask after removing about that many; whole steps stay, never fewer than `least`."""
        kept = math.ceil((self.size - removed) / self.step) * self.step
        kept = max(kept, math.ceil(self.least / self.step) * self.step)
        mask = np.ones(self.size, np.bool_)
        if kept < self.size:
            mask[self.order[: self.size - kept]] = False
        return mask


def global_budget(
    candidates: Sequence[Candidate], cost: Cost, limit: float, fixed: Mapping[str, int]
) -> Keep:
    """Remove the channels with the lowest price in the whole model until `cost` <= `limit`.

    fixed: group -> channels to remove, whatever they cost. At equal prices every group loses the
    same share. Returns what comes closest when the limit cannot be met.
    """
    if not candidates:
        return {}
    prices = np.concatenate([np.maximum.accumulate(c.price) for c in candidates])
    shares = np.concatenate([np.arange(1, c.size + 1) / c.size for c in candidates])
    owners = np.repeat(np.arange(len(candidates)), [c.size for c in candidates])
    cheapest_first = owners[np.lexsort((owners, shares, prices))]

    def after(removed: int) -> Keep:
        counts = np.bincount(cheapest_first[:removed], minlength=len(candidates))
        by_name = {c.name: int(n) for c, n in zip(candidates, counts, strict=True)}
        return _masks(candidates, {**by_name, **fixed})

    low, high = -1, len(cheapest_first)
    while low + 1 < high:
        middle = (low + high) // 2
        if cost(after(middle)) <= limit:
            high = middle
        else:
            low = middle
    return after(high)


def local_budget(
    candidates: Sequence[Candidate], cost: Cost, limit: float, fixed: Mapping[str, int]
) -> Keep:
    """Remove the same share of every group until `cost` <= `limit`; see `global_budget`."""

    def at(ratio: float) -> Keep:
        return local_ratio(candidates, ratio, fixed)

    low, high = 0.0, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (low, middle) if cost(at(middle)) <= limit else (middle, high)
    return at(high)


def local_ratio(candidates: Sequence[Candidate], ratio: float, fixed: Mapping[str, int]) -> Keep:
    """Remove a share of every group."""
    counts = {c.name: round(c.size * ratio) for c in candidates}
    return _masks(candidates, {**counts, **fixed})


def _masks(candidates: Sequence[Candidate], removed: Mapping[str, int]) -> Keep:
    masks = {c.name: c.keep(removed.get(c.name, 0)) for c in candidates}
    return {name: mask for name, mask in masks.items() if not mask.all()}
