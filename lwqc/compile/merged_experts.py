"""Experts of a mixture as numbers: hidden units matched, the most alike joined.

A permutation of an expert's hidden units changes nothing: weights are compared and averaged with
units in the order in which they fit best (MC-SMoE, arXiv 2310.01334; git re-basin, 2209.04836).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lwqc.graph.groups import Groups
from lwqc.graph.mixtures import Mixture
from lwqc.model import io

Array = NDArray[np.float32]
Expert = tuple[Array, ...]  # its row of each table
_MOST = 4096  # hidden units that are matched: it takes their number to the power of three


@dataclass(frozen=True)
class Units:
    """Where hidden units lie in an expert's rows.

    count: of units. axes: number of a table and axis of its rows -> positions of each unit, [units,
    positions].
    """

    count: int
    axes: Mapping[tuple[int, int], NDArray[np.intp]]

    def features(self, expert: Expert) -> Array:
        """All weights of each unit, [units, ...]."""
        parts = []
        for (table, axis), places in self.axes.items():
            rows = np.moveaxis(expert[table], axis, 0)
            parts.append(rows[places].reshape(self.count, -1))
        return np.concatenate(parts, axis=1)

    def ordered(self, expert: Expert, order: NDArray[np.intp]) -> Expert:
        """The expert whose unit i is its unit order[i] of before; it computes the same."""
        found = list(expert)
        for (table, axis), places in self.axes.items():
            where = np.arange(expert[table].shape[axis])
            where[places] = places[order]
            found[table] = np.take(found[table], where, axis)
        return tuple(found)


def find_units(mixture: Mixture, groups: Groups) -> Units | None:
    """The largest group of indices that only rows of the mixture's tables have, if any."""
    numbers = {table.name or "": i for i, table in enumerate(mixture.tables)}
    found: list[Units] = []
    for group in groups:
        if group.size > _MOST or any(o.name not in numbers for o in group.occurrences):
            continue
        axes = {}
        for one in group.occurrences:
            owner = group.owner(one)
            places = [np.flatnonzero(owner == index) for index in range(group.size)]
            if one.axis == 0 or len({len(p) for p in places}) != 1:
                break
            axes[numbers[one.name], one.axis - 1] = np.stack(places)
        else:
            found.append(Units(group.size, axes))
    return max(found, key=lambda units: units.count, default=None)


def experts_of(mixture: Mixture) -> list[Expert]:
    """Rows of each expert."""
    arrays = [np.asarray(io.read_array(tensor), np.float32) for tensor in mixture.tensors]
    return list(zip(*arrays, strict=True))


def matched(expert: Expert, to: Expert, units: Units | None) -> Expert:
    """The expert with its hidden units in the order that is nearest to another's."""
    if units is None:
        return expert
    from scipy.optimize import linear_sum_assignment

    alike = units.features(to) @ units.features(expert).T
    return units.ordered(expert, linear_sum_assignment(alike, maximize=True)[1])


def joined(experts: Sequence[Expert], shares: Sequence[float], units: Units | None) -> Expert:
    """One expert for several: the mean of their matched weights, each by its share (above 0)."""
    mean, whole = experts[0], shares[0]
    for expert, share in zip(experts[1:], shares[1:], strict=True):
        fitting = matched(expert, mean, units)
        whole += share
        mean = tuple(a + (share / whole) * (b - a) for a, b in zip(mean, fitting, strict=True))
    return mean


def most_alike(
    experts: Sequence[Expert], shares: Sequence[float], units: Units | None, count: int
) -> list[int]:
    """Which of `count` groups each expert is in, groups numbered by their first expert.

    Two groups a, b are joined at a time, those that add least to the squares: p_a p_b / (p_a + p_b)
    |W_a - W_b|² with matched means W and shares p (Ward 1963).
    """
    means = dict(enumerate(experts))
    whole = dict(enumerate(shares))
    members = {i: [i] for i in means}
    costs: dict[tuple[int, int], float] = {}

    def cost(a: int, b: int) -> float:
        other = matched(means[b], means[a], units)
        squares = sum(float(np.square(x - y).sum()) for x, y in zip(means[a], other, strict=True))
        return squares * whole[a] * whole[b] / (whole[a] + whole[b])

    while len(means) > count:
        for a in means:
            for b in means:
                if a < b and (a, b) not in costs:
                    costs[a, b] = cost(a, b)
        a, b = min(costs, key=lambda pair: (costs[pair], pair))
        means[a] = joined([means[a], means.pop(b)], [whole[a], whole[b]], units)
        whole[a] += whole.pop(b)
        members[a] += members.pop(b)
        costs = {pair: c for pair, c in costs.items() if not {a, b} & set(pair)}
    found = [0] * len(experts)
    for number, first in enumerate(sorted(members)):
        for expert in members[first]:
            found[expert] = number
    return found
