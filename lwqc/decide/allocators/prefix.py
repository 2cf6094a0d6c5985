"""One order of steps that serves every budget: any prefix of it is a plan (BitStack's idea)."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from lwqc.decide.allocators.knapsack import Option


@dataclass(frozen=True)
class PrefixStep:
    """Item `item` goes to option `option`; afterwards all items cost and err that much."""

    item: int
    option: int
    cost: float
    error: float


def prefix_order(options: Sequence[Sequence[Option]]) -> list[PrefixStep]:
    """Steps from all-cheapest to all-best, the largest decrease of error per cost first.

    Steps run along each item's lower convex hull, so ratios only fall and the plan after any
    number of steps has the least error for its cost among all plans (the linear relaxation's
    vertices). Source: arXiv 2410.23918 orders single units the same way for loading on demand.
    """
    hulls = [_hull(item) for item in options]
    cost = sum(item[hull[0]].cost for item, hull in zip(options, hulls, strict=True))
    error = sum(item[hull[0]].error for item, hull in zip(options, hulls, strict=True))
    waiting: list[tuple[float, int, int]] = []

    def offer(item: int, at: int) -> None:
        if at + 1 < len(hulls[item]):
            a, b = (options[item][hulls[item][k]] for k in (at, at + 1))
            heapq.heappush(waiting, (-(a.error - b.error) / (b.cost - a.cost), item, at + 1))

    for item in range(len(options)):
        offer(item, 0)
    steps = []
    while waiting:
        _, item, at = heapq.heappop(waiting)
        before, after = (options[item][hulls[item][k]] for k in (at - 1, at))
        cost += after.cost - before.cost
        error += after.error - before.error
        steps.append(PrefixStep(item, hulls[item][at], cost, error))
        offer(item, at)
    return steps


def at_budget(
    options: Sequence[Sequence[Option]], steps: Sequence[PrefixStep], budget: float
) -> list[int] | None:
    """Option of each item after the longest prefix within a budget; None if nothing fits."""
    chosen = [_hull(item)[0] for item in options]
    if sum(item[c].cost for item, c in zip(options, chosen, strict=True)) > budget:
        return None
    for step in steps:
        if step.cost > budget:
            break
        chosen[step.item] = step.option
    return chosen


def _hull(item: Sequence[Option]) -> list[int]:
    """Indices on the lower convex hull: rising cost, falling error."""
    hull: list[int] = []
    for i in sorted(range(len(item)), key=lambda i: (item[i].cost, item[i].error)):
        if hull and item[i].error >= item[hull[-1]].error:
            continue
        while len(hull) > 1 and _slope(item, hull[-2], i) <= _slope(item, hull[-2], hull[-1]):
            hull.pop()
        hull.append(i)
    return hull


def _slope(item: Sequence[Option], a: int, b: int) -> float:
    return (item[b].error - item[a].error) / (item[b].cost - item[a].cost)
