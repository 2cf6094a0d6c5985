"""Scales of blocks: the plain range that searches start from, and the type they are stored in."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lwqc.errors import InputError
from lwqc.quant.codebook import LEVELS
from lwqc.quant.formats import WeightFormat

Float = NDArray[np.float32]

_TINY = np.float32(1e-37)
_LARGEST = np.float32(1e30)  # sums of products of weights and codes stay finite
_HALF_MAX = float(np.finfo(np.float16).max)


def full_range(w: Float, fmt: WeightFormat) -> tuple[Float, Float]:
    """Scale [m] and zero point [m] of the full range of each column of w [block, m].

    0 is always on the grid. A scale that has no inverse becomes 1: such a block is stored as zeros.
    Raises InputError on NaN, infinity and values near the largest float32.
    """
    high, low = w.max(axis=0), w.min(axis=0)
    if not (np.isfinite(high) & np.isfinite(low)).all():
        raise InputError("weight holds NaN or infinity; it cannot be quantized")
    if max(high.max(initial=0), -low.min(initial=0)) > _LARGEST:
        raise InputError(f"weight holds values above {_LARGEST:.0e}; it cannot be quantized")
    scale, zero = _range(high, low, fmt)
    return np.where(np.abs(scale) > _TINY, scale, np.float32(1)), zero


def _range(high: Float, low: Float, fmt: WeightFormat) -> tuple[Float, Float]:
    if fmt.symmetric:
        magnitude: Float = np.maximum(high, -low)
        implicit = np.full_like(high, fmt.implicit_zero)
        half = np.float32(2 ** (fmt.bits - 1))
        if not fmt.whole:
            return magnitude / LEVELS[fmt.kind].max(), implicit
        if fmt.bits == 8:
            return magnitude / (half - np.float32(1)), implicit
        if fmt.positive:
            return magnitude / (half - np.float32(1)), implicit
        # The value of largest magnitude takes the extra negative code: the scale has its sign.
        extreme: Float = np.where(high > -low, high, low)
        return -extreme / half, implicit
    levels = np.float32(2**fmt.bits - 1)
    high, low = np.maximum(high, 0), np.minimum(low, 0)
    scale = (high - low) / levels
    zero = np.rint(np.divide(-low, scale, out=np.zeros_like(low), where=scale > 0))
    return scale, np.clip(zero, 0, levels)


def stored_scale(scale: Float, fmt: WeightFormat) -> Float:
    """Round scales to the type they are stored in; a zero scale becomes 1 (its codes are zero).

    Raises InputError when float16 would overflow.
    """
    if fmt.scale == "float16":
        if scale.size and np.abs(scale).max() > _HALF_MAX:
            raise InputError("weight is too large for float16 scales; use a float32 scale format")
        scale = scale.astype(np.float16).astype(np.float32)
    return np.where(np.abs(scale) > _TINY, scale, np.float32(1))
