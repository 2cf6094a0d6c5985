"""One level per item where errors interact in pairs: a quadratic integer program.

minimise sum_i E_i(a_i) + sum_{i<j} P_ij * s_i(a_i) * s_j(a_j) under a budget, as in CLADO
(2307.05657) with finite differences P_ij = L(i, j) - L(i) - L(j). The product of strengths
s = sqrt(E / E of the probe) extends an interaction measured at one level to the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations_with_replacement

import numpy as np

from lwqc.search.knapsack import Option, choose

_ROUNDS = 20


def choose_pairwise(
    options: Sequence[Sequence[Option]],
    pairs: Mapping[tuple[int, int], float],
    probes: Sequence[float],
    budget: float,
) -> list[int] | None:
    """Index of one option per item; None when even the cheapest options exceed the budget.

    pairs: (i, j) -> interaction measured with both items at their probes. probes: error of each
    item at its probe. Alternates exact knapsacks of the linearised problem with descent over
    single and paired switches of the quadratic one: a local optimum, exact without interactions.
    """
    strengths = [
        np.sqrt([max(o.error, 0.0) / max(probe, 1e-300) for o in item])
        for item, probe in zip(options, probes, strict=True)
    ]
    near: list[dict[int, float]] = [{} for _ in options]
    for (i, j), value in pairs.items():
        near[i][j] = near[j][i] = value

    def total(chosen: Sequence[int]) -> float:
        alone = sum(item[c].error for item, c in zip(options, chosen, strict=True))
        return alone + sum(
            value * float(strengths[i][chosen[i]] * strengths[j][chosen[j]])
            for (i, j), value in pairs.items()
        )

    best = choose(options, budget)
    if best is None:
        return None
    for _ in range(_ROUNDS):
        field = [
            sum(v * float(strengths[j][best[j]]) for j, v in near[i].items())
            for i in range(len(options))
        ]
        bent = [
            [Option(o.cost, o.error + field[i] * float(strengths[i][a])) for a, o in enumerate(os)]
            for i, os in enumerate(options)
        ]
        trials = [_descended(options, best, total, budget)]
        linear = choose(bent, budget)
        if linear is not None:
            trials.append(_descended(options, linear, total, budget))
        found = min(trials, key=total)
        if total(found) >= total(best):
            break
        best = found
    return best


def _descended(
    options: Sequence[Sequence[Option]],
    start: Sequence[int],
    total: Callable[[Sequence[int]], float],
    budget: float,
) -> list[int]:
    """The start after single and paired switches, for as long as they lower the total."""
    chosen, value = list(start), total(start)
    slack = budget - sum(item[c].cost for item, c in zip(options, chosen, strict=True))
    moves = [(i, a) for i, item in enumerate(options) for a in range(len(item))]
    improved = True
    while improved:
        improved = False
        for first, second in combinations_with_replacement(moves, 2):
            if first[0] == second[0] and first != second:
                continue
            trial = list(chosen)
            for i, a in (first, second):
                trial[i] = a
            grown = sum(options[i][trial[i]].cost - options[i][chosen[i]].cost
                        for i in {first[0], second[0]})  # fmt: skip
            if grown <= slack and (lower := total(trial)) < value - 1e-12 * abs(value):
                chosen, value, slack, improved = trial, lower, slack - grown, True
    return chosen
