"""Round to nearest with scales that minimise the squared error, block by block.

For a block w and codes d = q - z, the best scale is <w, d> / <d, d> and leaves the error
<w, w> - <w, d>^2 / <d, d>. Several starting scales are tried, each re-fitted this way, and the
one with the least error is kept: never worse than the plain min/max grid, which is among them.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from lwqc.errors import InputError
from lwqc.quant.formats import WeightFormat
from lwqc.quant.grid import Codes, Encoded, Float

# Fractions of the full range at which a block is clipped. Low bits gain from clipping, 8 bits
# hardly do, but one wide channel may.
SHRINK = {
    2: (1.0, 0.92, 0.84, 0.76, 0.68, 0.6),
    4: (1.0, 0.95, 0.9, 0.85, 0.8, 0.74),
    8: (1.0, 0.96, 0.92),
}
_TILE = 1 << 17  # values per tile: a few float32 copies of it stay in the second-level cache
_HALF_MAX = float(np.finfo(np.float16).max)


def encode(weight: NDArray[np.floating], fmt: WeightFormat, *, search: bool = True) -> Encoded:
    """Quantize a weight [N, K] to `fmt`.

    weight: float [N, K], any strides (a transposed view is read without a full copy).
    search: False uses the plain min/max range of each block.

    Raises InputError on NaN or infinity, or when float16 scales would overflow.
    """
    n, k = weight.shape
    block, blocks = fmt.block or k, fmt.blocks(k)
    codes = np.empty((n, blocks, block), np.uint8)
    scale = np.empty((n, blocks), np.float32)
    zero = np.empty((n, blocks), np.uint8)
    for rows, cols, tile in _tiles(weight, block):
        q, s, z = _fit(tile, fmt, SHRINK[fmt.bits] if search else (1.0,))
        shape = (rows.stop - rows.start, cols.stop - cols.start)
        codes[rows, cols] = q.T.reshape(*shape, block)
        scale[rows, cols], zero[rows, cols] = s.reshape(shape), z.reshape(shape)
    return Encoded(fmt, codes, scale, zero, k)


def _tiles(weight: NDArray[np.floating], block: int) -> Iterator[tuple[slice, slice, Float]]:
    """Yield (rows of N, blocks of K, values [block, rows * blocks]) covering the weight."""
    n, k = weight.shape
    blocks = -(-k // block)
    if weight.strides[0] < weight.strides[1]:  # stored [K, N]: a block row is contiguous
        step = max(1, _TILE // block)
        for b in range(blocks):
            for r in range(0, n, step):
                part = weight[r : r + step, b * block : (b + 1) * block].T
                yield slice(r, min(n, r + step)), slice(b, b + 1), _padded(part, block)
        return
    step = max(1, _TILE // (blocks * block))
    for r in range(0, n, step):
        rows = weight[r : r + step]
        if k % block:
            rows = np.pad(rows, ((0, 0), (0, blocks * block - k)))
        yield (
            slice(r, r + len(rows)),
            slice(0, blocks),
            np.ascontiguousarray(rows.reshape(-1, block).T, np.float32),
        )


def _padded(part: NDArray[np.floating], block: int) -> Float:
    """Return [block, m] float32, zero rows added below."""
    values = np.zeros((block, part.shape[1]), np.float32)
    values[: len(part)] = part
    return values


def _fit(w: Float, fmt: WeightFormat, shrink: tuple[float, ...]) -> tuple[Codes, Float, Codes]:
    """Quantize the columns of w [block, m]: codes [block, m], scale [m], zero point [m]."""
    levels = 2**fmt.bits - 1
    start, zero = _start(w, fmt)
    if not np.isfinite(start).all():
        raise InputError("weight holds NaN or infinity; it cannot be quantized")
    best_gain = np.full(w.shape[1], -1.0, np.float32)
    best = start.copy()
    # 8-bit symmetric codes stay within +-127: -128 saturates in some int8 kernels, gains nothing.
    low, high = (1 if fmt.symmetric and fmt.bits == 8 else 0) - zero, levels - zero
    d, buffer = np.empty_like(w), np.empty_like(w)
    for fraction in shrink:
        # A denormal block has no inverse scale; it is stored as zeros.
        scale = start * np.float32(fraction)
        inverse = np.divide(1, scale, out=np.zeros_like(scale), where=np.abs(scale) > 1e-37)
        _round(w, inverse, low, high, d)
        wd = np.multiply(w, d, out=buffer).sum(axis=0)
        dd = np.multiply(d, d, out=buffer).sum(axis=0)
        fitted = np.divide(wd, dd, out=scale, where=dd > 0)
        gain = wd * fitted  # <w, d>^2 / <d, d>
        better = gain > best_gain
        best_gain[better], best[better] = gain[better], fitted[better]
    best = _stored(best, fmt)
    inverse = np.divide(1, best, out=np.zeros_like(best), where=np.abs(best) > 1e-37)
    _round(w, inverse, low, high, d)
    d += zero
    return d.astype(np.uint8), best, zero.astype(np.uint8)


def _round(w: Float, inverse: Float, low: Float, high: Float, out: Float) -> None:
    """out = clip(round(w * inverse), low, high), column by column."""
    np.multiply(w, inverse, out=out)
    np.rint(out, out=out)
    np.maximum(out, low, out=out)
    np.minimum(out, high, out=out)


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


def _stored(scale: Float, fmt: WeightFormat) -> Float:
    """Round scales to the type they are stored in; a zero scale becomes 1 (its codes are zero)."""
    if fmt.scale == "float16":
        if scale.size and np.abs(scale).max() > _HALF_MAX:
            raise InputError("weight is too large for float16 scales; use a float32 scale format")
        scale = scale.astype(np.float16).astype(np.float32)
    return np.where(scale == 0, np.float32(1), scale)
