"""Exact multiple-choice knapsack: one option per item under a budget.

A Lagrangian bound first discards every option that cannot be part of an optimum; what is left is a
small integer program, stated relative to the remaining gap so that the solver's absolute tolerances
are far below any difference that matters. Feasibility is decided here by exact sums, never by the
solver. (Sinha and Zoltners, The Multiple-Choice Knapsack Problem, 1979.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from lwqc.errors import LwqcError

_SHARPNESS = 1e3  # the gap in the solver's units; its tolerances are 1e-6
_ROUNDING = 1e-13  # relative error of the reduced values
_MAX_CUTS = 1000


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


@dataclass(frozen=True)
class _Candidate:
    """An option that is left. reduced: value above the item's part of the Lagrangian bound."""

    item: int
    point: _Point
    reduced: float


def choose(options: Sequence[Sequence[Option]], budget: float) -> list[int] | None:
    """Index of one option per item with the least total error and total cost <= budget.

    None when even the cheapest allowed options exceed the budget, or an item has no allowed one.
    Exact up to rounding of the total; the same input gives the same answer.
    """
    return _solve([[_Point(o.cost, o.error, i) for i, o in enumerate(os)] for os in options], budget)


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
        _Candidate(i, p, max(p.value + price * p.weight - lowest[i], 0.0))
        for i, item in enumerate(items)
        for p in item
        if p.value + price * p.weight - lowest[i] <= gap
    ]
    return _search(left, best, price, gap, limit)


def _greedy(items: list[list[_Point]], limit: float) -> tuple[list[_Point], float]:
    """A good choice, and the price of weight at the optimum of the linear relaxation.

    Starts from the lightest points and takes steps along each item's convex hull, the largest
    decrease of value per weight first. The price is that of the first step that does not fit.
    """
    steps = sorted(
        ((a.value - b.value) / (b.weight - a.weight), -i, a, b)
        for i, item in enumerate(items)
        for a, b in _pairs(_hull(item))
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
    """The choice, with steps undone (the last items first) if rounding carried it over the limit."""
    for i in reversed(range(len(items))):
        if _weight(chosen) <= limit:
            break
        chosen[i] = items[i][0]
    return chosen


def _pairs(points: list[_Point]) -> zip[tuple[_Point, _Point]]:
    return zip(points, points[1:], strict=False)


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


def _search(
    left: list[_Candidate], best: list[_Point], price: float, gap: float, limit: float
) -> list[_Point]:
    """The best choice among the candidates that are left, or `best`.

    A choice of the solver that turns out to be over the limit is cut off and the rest searched.
    """
    program = _Program(left, price, gap, limit)
    for _ in range(_MAX_CUTS):
        picked = program.solve()
        if picked is None:
            return best
        if _weight(picked) <= limit:
            return min(best, picked, key=_value)
        program.forbid(picked)
    raise LwqcError(
        f"the knapsack found no choice within {limit:g} that it can prove best; "
        "ask for a slightly different budget"
    )


class _Program:
    """minimise sum(reduced x) + s  so that  price * sum(weight x) + s = price * limit,  s >= 0.

    The objective is the value above the Lagrangian bound; everything is in units of the gap.
    """

    def __init__(
        self, left: list[_Candidate], price: float, gap: float, limit: float
    ) -> None:
        self.left = left
        self.count = 1 + max(c.item for c in left)
        start = {c.item: c.point.weight for c in reversed(left)}
        room = math.fsum([limit, *(-w for w in start.values())])
        unit = _SHARPNESS / gap
        self.cost = np.array([c.reduced * unit for c in left] + [1.0])
        row = [price * (c.point.weight - start[c.item]) * unit for c in left]
        target = price * room * unit
        owner = np.array([c.item for c in left])
        one_each = csr_array(
            (np.ones(len(left)), (owner, np.arange(len(left)))), shape=(self.count, len(left) + 1)
        )
        self.constraints = [
            LinearConstraint(one_each, 1, 1),
            LinearConstraint(csr_array([[*row, 1.0]]), target, target),
        ]

    def solve(self) -> list[_Point] | None:
        """One point per item; None when nothing beats the gap. Raises LwqcError on failure."""
        size = len(self.left)
        result = milp(
            self.cost,
            constraints=self.constraints,
            integrality=np.append(np.ones(size, np.int64), 0),
            bounds=Bounds(0, np.append(np.ones(size), _SHARPNESS)),
            options={"mip_rel_gap": 0.0},
        )
        if result.status == 2:  # infeasible
            return None
        if result.x is None or result.status != 0:
            raise LwqcError(f"the knapsack solver failed: {result.message}")
        return self._round(result.x)

    def _round(self, x: NDArray[np.float64]) -> list[_Point]:
        picked: dict[int, tuple[float, _Point]] = {}
        for candidate, amount in zip(self.left, x, strict=False):
            if amount > picked.get(candidate.item, (0.0,))[0]:
                picked[candidate.item] = (float(amount), candidate.point)
        return [picked[i][1] for i in range(self.count)]

    def forbid(self, picked: list[_Point]) -> None:
        """Exclude exactly this choice."""
        row = [float(picked[c.item] is c.point) for c in self.left]
        self.constraints.append(
            LinearConstraint(csr_array([[*row, 0.0]]), -np.inf, self.count - 1)
        )
