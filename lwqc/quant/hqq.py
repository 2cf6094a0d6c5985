"""HQQ: half-quadratic quantization (Badri & Shaji 2023), data-free, robust to large weights.

min Σ|w - s (q - z)|^p, p < 1, by turns: e = shrink(w - s (q - z)) takes up the errors that are
worth giving up on, then scale and zero point are the least squares for w - e. Errors are measured
in steps of the plain range, so that the shrinkage does not depend on the size of the weights.
Operators take integer zero points: that of every turn is rounded and its scale fitted again, and
the best turn is kept.

Turns start from the plain range, as published: from a clipped one the objective falls further, but
large weights are lost and the squared error grows by half.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lwqc.quant.block_scale import full_range
from lwqc.quant.formats import WeightFormat
from lwqc.quant.grid import Encoded, Float
from lwqc.quant.k_quant import line
from lwqc.quant.tiles import encode_tiles
from lwqc.quant.unit_grid import round_to_grid

_POWER = 0.7
_TURNS = 20
_BETA, _GROWTH = 10.0, 1.01  # as published
_SMALLEST = np.float32(1e-6)  # of an error in steps; its power stays finite


def hqq(weight: NDArray[np.floating], fmt: WeightFormat) -> Encoded:
    """Quantize a weight [N, K] for the least sum of |error|^0.7 in each block.

    A symmetric format has no zero point to move: only its scale is fitted. Raises InputError as
    `range_search.encode` does.
    """
    return encode_tiles(weight, fmt, lambda columns, rows: _fit(columns, fmt))


def _fit(w: Float, fmt: WeightFormat) -> tuple[Float, Float]:
    """Scale [m] and zero point [m] for the columns of w [block, m]."""
    start, first = full_range(w, fmt)
    u = w / start
    best = np.ones_like(start), first
    least = np.full_like(start, np.inf)
    target, scale, zero = u, best[0], first
    for turn in range(_TURNS):
        at = first if fmt.symmetric else np.clip(np.rint(zero), 0, 2**fmt.bits - 1)
        d = round_to_grid(u, scale, at, fmt)
        fitted = _scale(target, d, scale) if turn else scale
        error = u - fitted * d
        slope = _slope(error)
        loss = np.einsum("ij,ij->j", np.abs(error), slope)
        better = loss < least
        best = np.where(better, fitted, best[0]), np.where(better, at, best[1])
        np.minimum(least, loss, out=least)
        beta = np.float32(_BETA * _GROWTH**turn)
        if fmt.symmetric:
            target = u - _shrink(error, slope, beta)
            scale = _scale(target, d, scale)
        else:
            q = np.clip(np.rint(u / scale + zero), 0, 2**fmt.bits - 1)
            error = u - scale * (q - zero)
            target = u - _shrink(error, _slope(error), beta)
            scale, zero = line(target, q, None, (scale, zero))
    return best[0] * start, best[1]


def _scale(target: Float, d: Float, old: Float) -> Float:
    """Least squares of target ≈ scale · d, column by column."""
    wd, dd = np.einsum("ij,ij->j", target, d), np.einsum("ij,ij->j", d, d)
    fitted: Float = np.divide(wd, dd, out=old.copy(), where=(dd > 0) & (wd > 0))
    return fitted


def _slope(error: Float) -> Float:
    """|error|^(p - 1)."""
    slope: Float = np.maximum(np.abs(error), _SMALLEST) ** np.float32(_POWER - 1)
    return slope


def _shrink(error: Float, slope: Float, beta: np.float32) -> Float:
    """sign(e) max(|e| - |e|^(p - 1) / β, 0)."""
    shrunk: Float = np.copysign(np.maximum(np.abs(error) - slope / beta, 0), error)
    return shrunk
