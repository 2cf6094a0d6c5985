"""Exact multiple-choice knapsack: one option per item under a budget.

A Lagrangian bound first discards every option that cannot be part of an optimum; dynamic
programming over the undominated sums of the others finds it. (Pisinger, A minimal algorithm for
the multiple-choice knapsack problem, 1995.)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

# Not scipy.optimize.milp: HiGHS 1.12 (scipy 1.17) stops at an absolute gap of 1e-6 that scipy does
# not expose, prints to stdout when a solution is numerically delicate, and does not end in minutes
# when errors are nearly proportional to costs.

_Floats = NDArray[np.float64]
_ROUNDING = 1e-13  # relative error of the Lagrangian bound
_MAX_SUMS = 20_000_000  # bounds memory and time where nearly all sums differ


@dataclass(frozen=True)
class Option:
    """One way to treat an item. cost: in any unit; error: additive, inf forbids the option."""

    cost: float
    error: float


@dataclass(frozen=True)
class _Point:
    """An option seen by the solver: minimise the sum of values, bound the sum of weights."""

    weight: float
    value: float
    index: int


def choose(options: Sequence[Sequence[Option]], budget: float) -> list[int] | None:
    """Index of one option per item with the least total error and total cost <= budget.

    None when even the cheapest allowed options exceed the budget, or an item has no allowed one.
    Exact up to rounding of the total, and the same input gives the same answer. Only where more
    than 20 million sums are undominated (errors proportional to costs, and all costs different) are
    nearly equal sums merged; the choice is then within the budget but may miss the last digits.
    """
    return _solve(
        [[_Point(o.cost, o.error, i) for i, o in enumerate(os)] for os in options], budget
    )


def cheapest(options: Sequence[Sequence[Option]], max_error: float) -> list[int] | None:
    """Index of one option per item with the least total cost and total error <= max_error.

    None when even the options of least error exceed it.
    """
    return _solve(
        [[_Point(o.error, o.cost, i) for i, o in enumerate(os)] for os in options], max_error
    )


def _solve(items: list[list[_Point]], limit: float) -> list[int] | None:
    kept = [_undominated(item) for item in items]
    if math.isnan(limit) or any(not item for item in kept):
        return None
    slack = limit - _weight([item[0] for item in kept])
    if slack < 0:
        return None
    slack += _noise(kept, limit)
    kept = [[p for p in item if p.weight - item[0].weight <= slack] for item in kept]
    best = [item[-1] for item in kept]
    if _weight(best) > limit:
        best = _optimum(kept, limit)
    return [p.index for p in best]


def _undominated(points: list[_Point]) -> list[_Point]:
    """Points that no other one beats on both counts: rising weight, falling value."""
    finite = (p for p in points if math.isfinite(p.weight) and math.isfinite(p.value))
    kept: list[_Point] = []
    for point in sorted(finite, key=lambda p: (p.weight, p.value, p.index)):
        if not kept or point.value < kept[-1].value:
            kept.append(point)
    return kept


def _noise(items: list[list[_Point]], limit: float) -> float:
    """What rounding may do to sums of weights; choices are checked by exact sums in the end."""
    return _ROUNDING * math.fsum([abs(limit), *(abs(item[0].weight) for item in items)])


def _weight(points: Sequence[_Point]) -> float:
    return math.fsum(p.weight for p in points)


def _value(points: Sequence[_Point]) -> float:
    return math.fsum(p.value for p in points)


def _optimum(items: list[list[_Point]], limit: float) -> list[_Point]:
    """The optimum when the limit binds but some choice is feasible."""
    best, price = _greedy(items, limit)
    lowest = [min(p.value + price * p.weight for p in item) for item in items]
    bound = math.fsum([*lowest, -price * limit])
    noise = _ROUNDING * math.fsum([*map(abs, lowest), abs(price * limit)])
    gap = _value(best) - bound + noise
    left = [
        [p for p in item if p.value + price * p.weight - low <= gap]
        for item, low in zip(items, lowest, strict=True)
    ]
    for found in _Sums(left, price, gap, limit).choices():
        if _value(found) >= _value(best):
            break
        if _weight(found) <= limit:
            return found
    return best


def _greedy(items: list[list[_Point]], limit: float) -> tuple[list[_Point], float]:
    """A good choice, and the price of weight at the optimum of the linear relaxation.

    Starts from the lightest points and takes steps along each item's convex hull, the largest
    decrease of value per weight first. The price is that of the first step that does not fit.
    """
    steps = sorted(
        ((a.value - b.value) / (b.weight - a.weight), -i, a, b)
        for i, item in enumerate(items)
        for a, b in pairwise(_hull(item))
    )
    chosen = [item[0] for item in items]
    slack = limit - _weight(chosen)
    price = 0.0
    for ratio, minus_item, start, end in reversed(steps):
        if chosen[-minus_item] is start and end.weight - start.weight <= slack:
            chosen[-minus_item] = end
            slack -= end.weight - start.weight
        elif not price:
            price = ratio
    return _fitting(items, chosen, limit), price


def _fitting(items: list[list[_Point]], chosen: list[_Point], limit: float) -> list[_Point]:
    """The choice, with the last items' steps undone if rounding carried it over the limit."""
    for i in reversed(range(len(items))):
        if _weight(chosen) <= limit:
            break
        chosen[i] = items[i][0]
    return chosen


def _hull(points: list[_Point]) -> list[_Point]:
    """Lower convex hull of undominated points."""
    hull: list[_Point] = []
    for p in points:
        while len(hull) > 1 and _slope(hull[-2], p) <= _slope(hull[-2], hull[-1]):
            hull.pop()
        hull.append(p)
    return hull


def _slope(a: _Point, b: _Point) -> float:
    return (b.value - a.value) / (b.weight - a.weight)


class _Sums:
    """Undominated sums of weight and value over the items, one item at a time.

    A sum is dropped when it exceeds the limit, or when its Lagrangian bound, with the weight that
    the remaining items cannot use up, exceeds the gap. Everything is relative to each item's
    lightest point.
    """

    def __init__(self, items: list[list[_Point]], price: float, gap: float, limit: float) -> None:
        self.items = items
        self.price = price
        self.room = math.fsum([limit, *(-item[0].weight for item in items)])
        # Wide items first: the rest then narrows quickly what the sums may be.
        self.order = sorted(
            (i for i, item in enumerate(items) if len(item) > 1),
            key=lambda i: (-(items[i][-1].weight - items[i][0].weight), i),
        )
        spans = [items[i][-1].weight - items[i][0].weight for i in self.order]
        self.rest = [math.fsum(spans[i + 1 :]) for i in range(len(spans))]
        reach = [
            min(p.value - item[0].value + price * (p.weight - item[0].weight) for p in item)
            for item in items
        ]
        self.lowest = [reach[i] for i in self.order]
        self.gap = gap
        self.noise = _noise(items, limit)
        self.most = _MAX_SUMS // max(1, sum(len(items[i]) for i in self.order))

    def choices(self) -> Iterator[list[_Point]]:
        """Complete choices, the least value first."""
        weight, value, steps = np.zeros(1), np.zeros(1), []
        for depth in range(len(self.order)):
            weight, value, step = self._extend(depth, weight, value)
            steps.append(step)
        for state in reversed(range(len(weight))):
            yield self._trace(steps, state)

    def _extend(
        self, depth: int, weight: _Floats, value: _Floats
    ) -> tuple[_Floats, _Floats, NDArray[np.intp]]:
        """Sums with one more item; the step is parent * options + option."""
        item = self.items[self.order[depth]]
        added_weight = np.array([p.weight - item[0].weight for p in item])
        added_value = np.array([p.value - item[0].value for p in item])
        heavier = (weight[:, None] + added_weight).ravel()
        better = (value[:, None] + added_value).ravel()
        step = np.flatnonzero(self._alive(depth, heavier, better))
        step = step[np.lexsort((better[step], heavier[step]))]
        falling = better[step]
        least = np.minimum.accumulate(falling)
        step = step[np.append(True, falling[1:] < least[:-1])[: len(step)]]
        step = _thinned(step, heavier[step], self.most)
        return heavier[step], better[step], step

    def _alive(self, depth: int, weight: _Floats, value: _Floats) -> NDArray[np.bool_]:
        slack = self.room + self.noise - weight
        unused = np.maximum(slack - self.rest[depth], 0)
        above = value + self.price * weight - math.fsum(self.lowest[: depth + 1])
        alive: NDArray[np.bool_] = (slack >= 0) & (above + self.price * unused <= self.gap)
        return alive

    def _trace(self, steps: list[NDArray[np.intp]], state: int) -> list[_Point]:
        picked = [item[0] for item in self.items]
        for i, step in zip(reversed(self.order), reversed(steps), strict=True):
            state, option = divmod(int(step[state]), len(self.items[i]))
            picked[i] = self.items[i][option]
        return picked


def _thinned(step: NDArray[np.intp], weight: _Floats, most: int) -> NDArray[np.intp]:
    """About `most` of the states, spread evenly over the weights; the heaviest of each."""
    if len(step) <= most:
        return step
    bucket = ((weight - weight[0]) * (most / (weight[-1] - weight[0]))).astype(np.int64)
    last: NDArray[np.bool_] = np.append(bucket[1:] != bucket[:-1], True)
    return np.asarray(step[last])
