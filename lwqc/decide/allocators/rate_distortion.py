"""Dynamic programming over error curves: one level per item, costs in buckets.

The allocator of RD (arXiv 2308.10438): f(n, s) = min over levels of error_n + f(n - 1, s - cost_n).
With curves of removed energy it is LAMP's choice of ratios (arXiv 2010.07611). It runs in
items * levels * buckets steps whatever the costs are; `knapsack.choose` is exact, but slow where
errors are proportional to costs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lwqc.decide.allocators.knapsack import Option

_BUCKETS = 10_000


def allocate(
    options: Sequence[Sequence[Option]], budget: float, buckets: int = _BUCKETS
) -> list[int] | None:
    """Index of one option per item with the least total error and total cost <= budget.

    Costs are rounded up to budget / buckets above each item's cheapest option, so the result
    always fits and is optimal for the rounded costs. None when the cheapest options do not fit.
    """
    least = [min((o.cost for o in item), default=np.inf) for item in options]
    room = budget - sum(least)
    if not room >= 0:
        return None
    unit = max(room / buckets, 1e-300)
    best = np.zeros(buckets + 1)
    picks = []
    for item, floor in zip(options, least, strict=True):
        found = np.full(buckets + 1, np.inf)
        pick = np.zeros(buckets + 1, np.intp)
        for index, option in enumerate(item):
            step = (option.cost - floor) / unit
            if step > buckets * (1 + 1e-12):
                continue
            shift = min(int(np.ceil(step * (1 - 1e-12))), buckets)
            value = np.full(buckets + 1, np.inf)
            value[shift:] = best[: buckets + 1 - shift] + option.error
            better = value < found
            found[better], pick[better] = value[better], index
        picks.append((pick, floor))
        best = found
    if not np.isfinite(best[-1]):
        return None
    chosen: list[int] = []
    left = buckets
    for item, (pick, floor) in zip(reversed(options), reversed(picks), strict=True):
        index = int(pick[left])
        chosen.append(index)
        step = (item[index].cost - floor) / unit
        left -= min(int(np.ceil(step * (1 - 1e-12))), buckets)
    return chosen[::-1]
