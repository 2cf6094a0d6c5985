"""What skipping one branch changes in those behind it and at the outputs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lwqc.graph.branch_kinds import feature_axis
from lwqc.graph.branches import Branch
from lwqc.runtime.stats.collector import Array, Feeds, Runner

Matrix = NDArray[np.float64]
_TINY = 1e-12


@dataclass(frozen=True)
class SkipEffects:
    """Effects of skipping branch i, by the order of `names`.

    later: [i, j] is the largest |f_j - f_j'| / |f_j| over all tokens, 0 for j that do not depend on
    i. outputs: [i] is the mean distance of the softmax of the outputs over their last axis.
    Source: Do Language Models Use Their Depth Efficiently?, arXiv 2505.13898.
    """

    names: tuple[str, ...]
    later: Matrix
    outputs: Matrix


def skip_effects(
    branches: Sequence[Branch],
    without: Callable[[Collection[str]], Runner],
    data: Iterable[Feeds],
) -> SkipEffects:
    """Skip every branch in turn, len(branches) + 1 runs for each batch.

    without: names of branches -> the model without them, which also returns what every branch
    computes, by the name of that value.
    """
    count = len(branches)
    later, total, batches = np.zeros((count, count)), np.zeros(count), 0
    for feeds in data:
        batches += 1
        reference = without(())(feeds)
        for i, skipped in enumerate(branches):
            found = without([skipped.name])(feeds)
            for j in (j for j in range(count) if j != i):
                change = _change(branches[j], reference, found)
                later[i, j] = max(later[i, j], change)
            total[i] += _distance(branches, reference, found)
    return SkipEffects(tuple(b.name for b in branches), later, total / max(batches, 1))


def _change(branch: Branch, reference: dict[str, Array], found: dict[str, Array]) -> float:
    name, axis = branch.branch.name or "", feature_axis(branch)
    before, after = (np.asarray(r[name], np.float64) for r in (reference, found))
    norms = np.linalg.norm(before, axis=axis)
    return float((np.linalg.norm(before - after, axis=axis) / np.maximum(norms, _TINY)).max())


def _distance(
    branches: Sequence[Branch], reference: dict[str, Array], found: dict[str, Array]
) -> float:
    from scipy.special import softmax

    inside = {b.branch.name for b in branches}
    distances = [
        np.linalg.norm(softmax(_rows(value), -1) - softmax(_rows(found[name]), -1), axis=-1).mean()
        for name, value in reference.items()
        if name not in inside and value.dtype.kind == "f"
    ]
    return float(max(distances, default=0.0))


def _rows(value: Array) -> Matrix:
    return np.asarray(value, np.float64).reshape(-1, value.shape[-1] if value.ndim else 1)
