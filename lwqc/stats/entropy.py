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

from lwqc.stats.histogram import HalfCounts

_SMOOTHING = 1e-4
_BATCH = 1 << 18  # elements of [candidates, bins] at a time; a few float32 copies fit the cache


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
    divergences = [
        divergence
        for start in range(0, halves.size, step)
        for divergence in _divergences(counts, halves[start : start + step], levels)
    ]
    return int(halves[int(np.argmin(divergences))])


def _divergences(
    counts: NDArray[np.int64], halves: NDArray[np.int64], levels: int
) -> NDArray[np.float64]:
    """KL divergence of each candidate width [n] -> [n]; rows below are [n, widest]."""
    bins, middle = counts.size, counts.size // 2
    starts = middle - halves
    sizes = np.minimum(middle + halves + 1, bins) - starts
    offset = np.arange(sizes.max())
    inside = offset < sizes[:, None]
    kept = np.where(inside, counts[np.minimum(starts[:, None] + offset, bins - 1)], 0)
    reference = kept.copy()
    below = np.r_[0, np.cumsum(counts)]
    reference[:, 0] += below[starts]
    reference[np.arange(len(sizes)), sizes - 1] += below[-1] - below[starts + sizes]
    return _kl(reference, _quantized(kept, reference != 0, sizes, levels), inside)


def _quantized(
    kept: NDArray[np.int64], occupied: NDArray[np.bool_], sizes: NDArray[np.int64], levels: int
) -> NDArray[np.int64]:
    """Counts merged to `levels` and spread again over the bins that were occupied."""
    width = (sizes // levels)[:, None]
    cut = np.arange(levels + 1) * width
    merged = _between(kept, cut)
    merged[:, -1] += _between(kept, np.c_[cut[:, -1], sizes])[:, 0]
    norm = _between(occupied, cut)
    level = merged // np.maximum(norm, 1)
    group = np.arange(kept.shape[1]) // width
    spread = np.take_along_axis(level, np.minimum(group, levels - 1), axis=1)
    return np.where(group < levels, spread, 0)


def _between(rows: NDArray[np.generic], cut: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sums of each row between consecutive positions: rows [n, m], cut [n, k + 1] -> [n, k]."""
    total = np.zeros((rows.shape[0], rows.shape[1] + 1), np.int64)
    np.cumsum(rows, axis=1, out=total[:, 1:])
    return np.diff(np.take_along_axis(total, cut, axis=1), axis=1)


def _kl(
    p: NDArray[np.int64], q: NDArray[np.int64], inside: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """sum p log(p / q) of smoothed, normalised rows; inf when a row of q is empty."""
    smooth_p, smooth_q = _smooth(p, inside), _smooth(q, inside)
    ratio = np.divide(smooth_p, smooth_q, out=np.ones_like(smooth_p), where=inside)
    divergence: NDArray[np.float64] = (smooth_p * np.log(ratio)).sum(axis=1, dtype=np.float64)
    return np.where(q.any(axis=1), divergence, np.inf)


def _smooth(rows: NDArray[np.int64], inside: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Rows as distributions in which empty bins get a little of the others' mass."""
    occupied = rows != 0
    share = occupied.sum(axis=1, keepdims=True)
    empty = inside.sum(axis=1, keepdims=True) - share
    taken = np.minimum(_SMOOTHING * empty / np.maximum(share, 1), 0.5)
    smooth = np.where(occupied, rows - taken, _SMOOTHING * inside).astype(np.float32)
    smooth /= smooth.sum(axis=1, keepdims=True)
    return smooth
