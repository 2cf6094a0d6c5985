"""Exact multiple-choice knapsack: one option per item under a budget."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from lwqc.errors import LwqcError


@dataclass(frozen=True)
class Option:
    """One way to treat an item. cost: in any unit; error: additive, inf forbids the option."""

    cost: float
    error: float


def choose(options: Sequence[Sequence[Option]], budget: float) -> list[int] | None:
    """Index of one option per item with the least total error and total cost <= budget.

    None when even the cheapest options exceed the budget.
    """
    return _solve(
        options,
        [[o.error for o in item] for item in options],
        [[o.cost for o in item] for item in options],
        budget,
    )


def cheapest(options: Sequence[Sequence[Option]], max_error: float) -> list[int] | None:
    """Index of one option per item with the least total cost and total error <= max_error."""
    return _solve(
        options,
        [[o.cost for o in item] for item in options],
        [[o.error for o in item] for item in options],
        max_error,
    )


def _solve(
    options: Sequence[Sequence[Option]],
    value: list[list[float]],
    weight: list[list[float]],
    limit: float,
) -> list[int] | None:
    """Minimise total value with total weight <= limit."""
    kept = [_undominated(v, w) for v, w in zip(value, weight, strict=True)]
    if any(not item for item in kept):
        return None
    lightest = [min(item, key=w.__getitem__) for item, w in zip(kept, weight, strict=True)]
    if math.fsum(w[i] for w, i in zip(weight, lightest, strict=True)) > limit:
        return None
    best = [min(item, key=v.__getitem__) for item, v in zip(kept, value, strict=True)]
    if math.fsum(w[i] for w, i in zip(weight, best, strict=True)) <= limit:
        return best
    picked = _milp(kept, value, weight, limit)
    if math.fsum(w[i] for w, i in zip(weight, picked, strict=True)) > limit:
        # The solver's feasibility tolerance let it slip over; ask for a little less.
        picked = _milp(kept, value, weight, limit - abs(limit) * 1e-6)
    return picked


def _undominated(value: list[float], weight: list[float]) -> list[int]:
    """Options that no other one beats on both counts, in order of weight."""
    order = sorted(
        (i for i in range(len(value)) if math.isfinite(value[i]) and math.isfinite(weight[i])),
        key=lambda i: (weight[i], value[i], i),
    )
    kept: list[int] = []
    for i in order:
        if not kept or value[i] < value[kept[-1]]:
            kept.append(i)
    return kept


def _milp(
    kept: list[list[int]], value: list[list[float]], weight: list[list[float]], limit: float
) -> list[int]:
    flat_value = np.array([v[i] for item, v in zip(kept, value, strict=True) for i in item])
    flat_weight = np.array([w[i] for item, w in zip(kept, weight, strict=True) for i in item])
    sizes = [len(item) for item in kept]
    owner = np.repeat(np.arange(len(kept)), sizes)
    one_each = csr_array((np.ones(len(owner)), (owner, np.arange(len(owner)))))
    value_scale = float(np.abs(flat_value).max()) or 1.0
    # In units of the slack above the lightest choice, so that tolerances are relative to it.
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    base = np.minimum.reduceat(flat_weight, starts)
    slack = max(limit - float(base.sum()), 1e-300)
    extra = (flat_weight - base[owner]) / slack
    extra = np.minimum(extra, 2.0)  # anything above the whole slack is out of reach
    result = milp(
        flat_value / value_scale,
        constraints=[
            LinearConstraint(one_each, 1, 1),
            LinearConstraint(csr_array(extra[None, :]), -np.inf, 1.0),
        ],
        integrality=np.ones(len(owner), np.int64),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 0.0},
    )
    if result.x is None:
        raise LwqcError(f"the knapsack solver failed: {result.message}")
    picked, position = [], 0
    for item in kept:
        picked.append(item[int(np.argmax(result.x[position : position + len(item)]))])
        position += len(item)
    return picked
