"""One level per item where errors interact in pairs: a quadratic integer program.

minimise sum_i E_i(a_i) + sum_{i<j} P_ij * s_i(a_i) * s_j(a_j) under a budget, as in CLADO
(2307.05657) with finite differences P_ij = L(i, j) - L(i) - L(j). The product of strengths
s = sqrt(E / E of the probe) extends an interaction measured at one level to the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from lwqc.decide.allocators.knapsack import Option, choose

_ROUNDS = 20
_LEAST = 1e-12  # of the error that a switch must save


def choose_pairwise(
    options: Sequence[Sequence[Option]],
    pairs: Mapping[tuple[int, int], float],
    probes: Sequence[float],
    budget: float,
) -> list[int] | None:
    """Index of one option per item; None when even the cheapest options exceed the budget.

    pairs: (i, j) -> interaction measured with both items at their probes. probes: error of each
    item at its probe; one without error interacts with none. Alternates exact knapsacks of the
    linearised problem with descent over single and paired switches of the quadratic one: a local
    optimum, exact without interactions.
    """
    best = choose(options, budget)
    if best is None:
        return None
    problem = _Problem(options, pairs, probes, budget)
    for _ in range(_ROUNDS):
        trials = [problem.descended(best)]
        linear = choose(problem.bent(best), budget)
        if linear is not None:
            trials.append(problem.descended(linear))
        found = min(trials, key=problem.total)
        if problem.total(found) >= problem.total(best):
            break
        best = found
    return best


class _Problem:
    """All options in one row [M], items [n] beside each other."""

    def __init__(
        self,
        options: Sequence[Sequence[Option]],
        pairs: Mapping[tuple[int, int], float],
        probes: Sequence[float],
        budget: float,
    ) -> None:
        self.options, self.budget = options, budget
        flat = [(i, o.cost, o.error) for i, item in enumerate(options) for o in item]
        self._item = np.array([i for i, _, _ in flat])
        self._first = np.searchsorted(self._item, np.arange(len(options)))
        self._cost = np.array([cost for _, cost, _ in flat])
        self._error = np.array([error for _, _, error in flat])
        probe = np.asarray(probes, float)[self._item]
        relative = np.divide(self._error, probe, out=np.zeros(len(flat)), where=probe > 0)
        self._strength = np.sqrt(np.maximum(relative, 0.0))
        self._pairs = np.zeros((len(options), len(options)))
        for (i, j), value in pairs.items():
            self._pairs[i, j] = self._pairs[j, i] = value

    def total(self, chosen: Sequence[int] | NDArray[np.intp]) -> float:
        """The quadratic error."""
        at = self._first + chosen
        strength = self._strength[at]
        return float(self._error[at].sum() + strength @ self._pairs @ strength / 2)

    def bent(self, chosen: Sequence[int]) -> list[list[Option]]:
        """The options with what each adds to those chosen: the problem made linear there."""
        field = self._pairs @ self._strength[self._first + chosen]
        errors = iter(self._error + field[self._item] * self._strength)
        return [[Option(o.cost, float(next(errors))) for o in item] for item in self.options]

    def descended(self, start: Sequence[int]) -> list[int]:
        """After single and paired switches, always what saves most, for as long as any does."""
        chosen = np.array(start)
        while True:
            change, options = self._switch(chosen)
            if change >= -_LEAST * abs(self.total(chosen)):
                return [int(c) for c in chosen]
            for option in options:
                item = self._item[option]
                chosen[item] = option - self._first[item]

    def _switch(self, chosen: NDArray[np.intp]) -> tuple[float, tuple[int, ...]]:
        """What saves most within the budget: the change of the total, and one or two options.

        A pair with an option that is chosen already is a single switch.
        """
        at = self._first + chosen
        grown = self._cost - self._cost[at][self._item]
        moved = self._strength - self._strength[at][self._item]
        field = (self._pairs @ self._strength[at])[self._item]
        alone = self._error - self._error[at][self._item] + moved * field
        slack = self.budget - float(self._cost[at].sum())
        best, found = 0.0, tuple[int, ...]()
        for item, first in enumerate(self._first):
            own = slice(first, first + len(self.options[item]))
            crossed = np.outer(moved[own], self._pairs[item][self._item] * moved)
            change = alone[own, None] + alone + crossed
            fits = (grown[own, None] + grown <= slack) & (self._item != item)
            change[~fits] = np.inf
            one, other = np.unravel_index(int(change.argmin()), change.shape)
            if change[one, other] < best:
                best, found = float(change[one, other]), (int(first + one), int(other))
        return best, found
