"""Dynamic programming over how many tokens a model goes on with behind each of its layers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_BUCKETS = 1000


def allocate(
    errors: NDArray[np.float64],
    shares: NDArray[np.float64],
    weights: NDArray[np.float64],
    budget: float,
) -> list[int] | None:
    """A level behind each layer, never above that of the layer before, of least total error.

    errors: [layers, levels], of going on with a level behind one layer alone; inf where a layer
    cannot. shares: [levels], of the tokens that a level leaves; level 0 leaves all. weights:
    [layers], of the work behind each layer up to the next. budget: of weights times shares. What
    went before is counted as if it had gone here: going from one level to another costs the
    difference of their errors. None where nothing fits.
    """
    layers, levels = errors.shape
    unit = max(budget, 1e-300) / _BUCKETS
    steps = np.rint(np.outer(weights, shares) / unit).astype(np.intp)
    best = np.full((levels, _BUCKETS + 1), np.inf)  # by level and budget that is left
    best[0, _BUCKETS] = 0.0
    taken: list[NDArray[np.intp]] = []
    for layer in range(layers):
        found = np.full_like(best, np.inf)
        before = np.zeros(best.shape, np.intp)
        for level in range(levels):
            step = steps[layer, level]
            if step > _BUCKETS or not np.isfinite(errors[layer, level]):
                continue
            for old in range(level + 1):
                known = errors[layer, old] if np.isfinite(errors[layer, old]) else 0.0
                rise = max(0.0, errors[layer, level] - known) if old < level else 0.0
                value = best[old, step:] + rise
                better = value < found[level, : _BUCKETS + 1 - step]
                found[level, : _BUCKETS + 1 - step][better] = value[better]
                before[level, : _BUCKETS + 1 - step][better] = old
        taken.append(before)
        best = found
    if not np.isfinite(best).any():
        return None
    return _traced(best, taken, steps)


def _traced(
    best: NDArray[np.float64], taken: Sequence[NDArray[np.intp]], steps: NDArray[np.intp]
) -> list[int]:
    level, left = (int(i) for i in np.unravel_index(np.argmin(best), best.shape))
    chosen: list[int] = []
    for before, step in zip(reversed(taken), steps[::-1], strict=True):
        chosen.append(level)
        level, left = int(before[level, left]), left + step[level]
    return chosen[::-1]
