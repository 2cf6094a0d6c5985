"""Round to nearest with scales that minimise the squared error, block by block.

For a block w and codes d = q - z, the best scale is <w, d> / <d, d> and leaves the error
<w, w> - <w, d>^2 / <d, d>; the products may weigh inputs by their importance. Several starting
scales are tried, each re-fitted this way, and the one with the least error is kept: never worse
than the plain min/max grid, which is among them.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from lwqc.errors import InputError
from lwqc.quant.formats import WeightFormat
from lwqc.quant.grid import Codes, Encoded, Float

# Fractions of the full range at which a block is clipped. Low bits gain from clipping, and the more
# the larger the block is; 8 bits hardly do, but one wide channel may.
_SHRINK = {
    2: (1.0, 0.92, 0.84, 0.76, 0.68, 0.6),
    4: (1.0, 0.95, 0.9, 0.85, 0.8, 0.74),
    8: (1.0, 0.96, 0.92),
}
_SHRINK_SMALL = {**_SHRINK, 4: (1.0, 0.95, 0.9, 0.85)}
_SMALL_BLOCK = 32
_TILE = 1 << 17  # values per tile: a few float32 copies of it stay in the second-level cache
_TINY = np.float32(1e-37)
_HALF_MAX = float(np.finfo(np.float16).max)


def encode(
    weight: NDArray[np.floating],
    fmt: WeightFormat,
    *,
    search: bool = True,
    importance: NDArray[np.floating] | None = None,
) -> Encoded:
    """Quantize a weight [N, K] to `fmt`.

    weight: float [N, K], any strides (a transposed view is read without a full copy).
    search: False uses the plain min/max range of each block.
    importance: [K], positive; what the squared error of each input counts. With the mean square
        of the inputs it is the error at the layer's output, if inputs are uncorrelated.

    Raises InputError on NaN or infinity, or when float16 scales would overflow.
    """
    n, k = weight.shape
    block, blocks = fmt.block or k, fmt.blocks(k)
    codes = np.empty((n, blocks, block), np.uint8)
    scale = np.empty((n, blocks), np.float32)
    zero = np.empty((n, blocks), np.uint8)
    small = block <= _SMALL_BLOCK
    shrink = (_SHRINK_SMALL if small else _SHRINK)[fmt.bits] if search else (1.0,)
    counts = None if importance is None else _counts(importance, blocks, block)

    def fill(rows: slice) -> None:
        tile = _tile(weight[rows], blocks, block)
        q, s, z = _fit(tile, fmt, shrink, counts)
        codes[rows] = q.reshape(block, blocks, -1).transpose(2, 1, 0)
        scale[rows], zero[rows] = s.reshape(blocks, -1).T, z.reshape(blocks, -1).T

    step = max(1, _TILE // (blocks * block))
    parts = [slice(r, min(n, r + step)) for r in range(0, n, step)]
    if len(parts) == 1:
        fill(parts[0])
    else:
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # numpy releases the lock
            list(pool.map(fill, parts))
    return Encoded(fmt, codes, scale, zero, k)


def _tile(rows: NDArray[np.floating], blocks: int, block: int) -> Float:
    """Some output channels [r, k], stored either way, as columns of blocks [block, blocks * r]."""
    r, k = rows.shape
    if k < blocks * block:
        rows = np.pad(rows, ((0, 0), (0, blocks * block - k)))
    tile = rows.T.reshape(blocks, block, r).transpose(1, 0, 2)
    return np.ascontiguousarray(tile, np.float32).reshape(block, blocks * r)


def _counts(importance: NDArray[np.floating], blocks: int, block: int) -> Float:
    """Importance by block [block, blocks], its mean 1."""
    mean = np.mean(importance, dtype=np.float64)
    return _tile((importance / (mean if mean > 0 else 1.0))[None], blocks, block)


def _fit(
    w: Float, fmt: WeightFormat, shrink: tuple[float, ...], counts: Float | None = None
) -> tuple[Codes, Float, Codes]:
    """Quantize the columns of w [block, m]: codes [block, m], scale [m], zero point [m].

    counts: [block, blocks], of each of the equal parts of the columns in turn.
    """
    start, zero = _start(w, fmt)
    if not np.isfinite(start).all():
        raise InputError("weight holds NaN or infinity; it cannot be quantized")
    # A scale without an inverse: such a block is stored as zeros.
    start = np.where(np.abs(start) > _TINY, start, np.float32(1))
    lowest, highest = code_range(fmt)
    if fmt.symmetric:
        low: Float | float = lowest - 2.0 ** (fmt.bits - 1)
        high: Float | float = highest - 2.0 ** (fmt.bits - 1)
    else:
        low, high = lowest - zero, highest - zero
    best_gain = np.full(w.shape[1], -1.0, np.float32)
    best = start
    d = np.empty_like(w)
    counted = d if counts is None else np.empty_like(w)
    for fraction in shrink:
        _round(w, start * np.float32(fraction), low, high, d)
        if counts is not None:
            _count(d, counts, counted)
        wd, dd = np.einsum("ij,ij->j", w, counted), np.einsum("ij,ij->j", d, counted)
        fitted = np.divide(wd, dd, out=np.zeros_like(wd), where=dd > 0)
        gain = wd * fitted  # <w, d>^2 / <d, d>
        best = np.where(gain > best_gain, fitted, best)
        np.maximum(best_gain, gain, out=best_gain)
    best = stored_scale(best, fmt)
    _round(w, best, low, high, d)
    d += zero
    return d.astype(np.uint8), best, zero.astype(np.uint8)


def _count(d: Float, counts: Float, out: Float) -> None:
    """out = d times the counts of its blocks."""
    parts = (*counts.shape, -1)
    np.multiply(d.reshape(parts), counts[..., None], out=out.reshape(parts))


def _round(w: Float, scale: Float, low: Float | float, high: Float | float, out: Float) -> None:
    """out = clip(round(w / scale), low, high), column by column."""
    inverse = np.float32(1) / scale
    np.multiply(w, inverse, out=out)
    np.rint(out, out=out)
    np.clip(out, low, high, out=out)


def _start(w: Float, fmt: WeightFormat) -> tuple[Float, Float]:
    """Scale [m] and zero point [m] of the full range of each column, zero always on the grid."""
    high, low = w.max(axis=0), w.min(axis=0)
    if fmt.symmetric:
        half = np.float32(2 ** (fmt.bits - 1))
        if fmt.bits == 8:
            return np.maximum(high, -low) / (half - 1), np.full_like(high, half)
        # The value of largest magnitude takes the extra negative code: the scale has its sign.
        extreme = np.where(high > -low, high, low)
        return -extreme / half, np.full_like(high, half)
    levels = np.float32(2**fmt.bits - 1)
    high, low = np.maximum(high, 0), np.minimum(low, 0)
    scale = (high - low) / levels
    zero = np.rint(np.divide(-low, scale, out=np.zeros_like(low), where=scale > 0))
    return scale, np.clip(zero, 0, levels)


def code_range(fmt: WeightFormat) -> tuple[int, int]:
    """Lowest and highest code of a format."""
    # 8-bit symmetric codes stay within +-127: -128 saturates in some int8 kernels, gains nothing.
    return (1 if fmt.symmetric and fmt.bits == 8 else 0), 2**fmt.bits - 1


def stored_scale(scale: Float, fmt: WeightFormat) -> Float:
    """Round scales to the type they are stored in; a zero scale becomes 1 (its codes are zero).

    Raises InputError when float16 would overflow.
    """
    if fmt.scale == "float16":
        if scale.size and np.abs(scale).max() > _HALF_MAX:
            raise InputError("weight is too large for float16 scales; use a float32 scale format")
        scale = scale.astype(np.float16).astype(np.float32)
    return np.where(np.abs(scale) > _TINY, scale, np.float32(1))
