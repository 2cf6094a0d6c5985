"""Range with the least KL divergence between a histogram and its quantized form.

The published method (NVIDIA, 8-bit inference with TensorRT, GTC 2017) as onnxruntime computes it,
so that thresholds agree, including two of its habits: bins left over when they do not divide into
`levels` keep only the smoothing mass, which favours sizes that divide; and merged counts are
rounded down. With 128 bins and 128 levels, onnxruntime's defaults, the only candidate is the full
range.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lwqc.runtime.stats.histogram import HalfCounts

Float = NDArray[np.float64]

_SMOOTHING = 1e-4  # mass of an empty bin
_BATCH = 1 << 18  # elements of [candidates, bins] at a time


def entropy_limits(
    histogram: HalfCounts, bins: int = 512, levels: int = 128
) -> tuple[float, float]:
    """(low, high) of least divergence, inside the observed extremes.

    bins: of the linear histogram over ±absmax; thresholds are multiples of its width.
    levels: bins that remain after quantization.
    """
    low, high = histogram.low, histogram.high
    bound = max(-low, high)
    if bound == 0:
        return 0.0, 0.0
    edges = np.linspace(-bound, bound, bins + 1)
    counts = np.rint(histogram.linear(edges)).astype(np.int64)
    half = best_half_width(counts, levels)
    middle = bins // 2
    left, right = edges[middle - half], edges[min(middle + half + 1, bins)]
    return max(float(left), low), min(float(right), high)


def best_half_width(counts: NDArray[np.int64], levels: int) -> int:
    """Bins to keep on each side of the middle, from levels // 2 to all of them."""
    halves = np.arange(levels // 2, counts.size // 2 + 1)
    step = max(1, _BATCH // counts.size)
    batches = [halves[i : i + step] for i in range(0, halves.size, step)]
    divergences = np.concatenate([_divergences(counts, batch, levels) for batch in batches])
    return int(halves[int(np.argmin(divergences))])


def _divergences(counts: NDArray[np.int64], halves: NDArray[np.int64], levels: int) -> Float:
    """sum p log(p / q) of each candidate width [n] -> [n]; inf where q is empty.

    p: the kept bins, outliers added to its ends. q: the kept bins without outliers merged to
    `levels` groups and spread evenly over them, so q is one number per group [n, levels].
    """
    bins, middle = counts.size, counts.size // 2
    starts, ends = middle - halves, np.minimum(middle + halves + 1, bins)
    below, filled = _prefix(counts), _prefix(counts != 0)
    cut = starts[:, None] + np.arange(levels + 1) * ((ends - starts) // levels)[:, None]
    kept, occupied = np.diff(below[cut]), np.diff(filled[cut])
    rest, rest_occupied = below[ends] - below[cut[:, -1]], filled[ends] - filled[cut[:, -1]]

    # Outliers fill the first bin, and the last one, which is in no group when bins are left over.
    left, right = below[starts], below[-1] - below[ends]
    new_left = (left > 0) & (counts[starts] == 0)
    new_right = (right > 0) & (counts[ends - 1] == 0)
    left_over = cut[:, -1] < ends
    mass, mass_rest = kept.copy(), rest + right * left_over
    mass[:, 0] += left
    mass[:, -1] += right * ~left_over
    occupied[:, 0] += new_left
    occupied[:, -1] += new_right & ~left_over
    rest_occupied += new_right & left_over

    width = np.diff(cut)
    kept[:, -1] += rest
    level = kept // np.maximum(occupied, 1)
    p_taken = _taken(ends - starts, occupied.sum(axis=1) + rest_occupied)
    q_taken = _taken(ends - starts, (width * (level > 0)).sum(axis=1))
    q = np.where(level > 0, level - q_taken[:, None], _SMOOTHING)
    q_total = np.maximum((width * level).sum(axis=1), 1)

    p_groups = mass - p_taken[:, None] * occupied + _SMOOTHING * (width - occupied)
    spare = ends - cut[:, -1]
    p_spare = mass_rest - p_taken * rest_occupied + _SMOOTHING * (spare - rest_occupied)
    total = max(int(below[-1]), 1)
    cross = (p_groups * np.log(q)).sum(axis=1) + p_spare * np.log(_SMOOTHING)
    own = _own_entropy(counts, starts, ends, left, right, p_taken)
    divergence: Float = (own - cross) / total - np.log(total / q_total)
    return np.where(level.any(axis=1), divergence, np.inf)


def _own_entropy(
    counts: NDArray[np.int64],
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
    left: NDArray[np.int64],
    right: NDArray[np.int64],
    taken: Float,
) -> Float:
    """sum p log p over the smoothed bins of each candidate, before normalising."""
    offset = np.arange(int((ends - starts).max()))
    positions = np.minimum(starts[:, None] + offset, counts.size - 1)
    p = counts.astype(np.float64)[positions]
    p[:, 0] += left
    p[np.arange(starts.size), ends - starts - 1] += right
    p = np.where(p > 0, p - taken[:, None], _SMOOTHING)
    logs = np.log(p, out=np.zeros_like(p), where=offset < (ends - starts)[:, None])
    entropy: Float = np.einsum("ij,ij->i", p, logs)
    return entropy


def _taken(bins: NDArray[np.int64], occupied: NDArray[np.int64]) -> Float:
    """What each occupied bin gives up so that every empty one gets the smoothing mass."""
    share: Float = _SMOOTHING * (bins - occupied) / np.maximum(occupied, 1)
    return np.minimum(share, 0.5)


def _prefix(values: NDArray[np.generic]) -> NDArray[np.int64]:
    """Sums of the first 0, 1, ..., n values."""
    sums = np.zeros(values.size + 1, np.int64)
    np.cumsum(values, out=sums[1:])
    return sums
