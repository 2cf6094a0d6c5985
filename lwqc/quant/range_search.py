"""Round to nearest with scales that minimise the squared error, block by block.

For a block w and values d of the grid at scale 1, the best scale is <w, d> / <d, d> and leaves the
error <w, w> - <w, d>^2 / <d, d>; the products may weigh inputs by their importance. Several
starting scales are tried, each re-fitted this way, and the one with the least error is kept: never
worse than the plain min/max grid, which is among them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from lwqc.quant.block_scale import full_range
from lwqc.quant.dual_grained import dual_grained
from lwqc.quant.formats import WeightFormat
from lwqc.quant.grid import Encoded, Float
from lwqc.quant.native import searched
from lwqc.quant.tiles import Rows, encode_tiles, tile
from lwqc.quant.unit_grid import round_to_grid

# Fractions of the full range at which a block is clipped. Low bits gain from clipping, and the more
# the larger the block is; 8 bits hardly do, but one wide channel may.
_SHRINK = {
    2: (1.0, 0.92, 0.84, 0.76, 0.68, 0.6),
    3: (1.0, 0.94, 0.88, 0.81, 0.74, 0.67),
    4: (1.0, 0.95, 0.9, 0.85, 0.8, 0.74),
    8: (1.0, 0.96, 0.92),
    7: (1.0, 0.96, 0.92),
}
_SHRINK_SMALL = {**_SHRINK, 4: (1.0, 0.95, 0.9, 0.85)}
_SMALL_BLOCK = 32


def encode(
    weight: Rows,
    fmt: WeightFormat,
    *,
    search: bool = True,
    importance: NDArray[np.floating] | None = None,
) -> Encoded:
    """Quantize a weight [N, K] to `fmt`.

    weight: float [N, K], any strides (a transposed view is read without a full copy), or in a file.
    search: False uses the plain min/max range of each block.
    importance: [K], or [N, K] where rows have inputs of their own, positive; what the squared error
        of each input counts. With the mean square of the inputs it is the error at the layer's
        output, if inputs are uncorrelated.

    Raises InputError on NaN or infinity, on values above 1e30, or when float16 scales would
    overflow.
    """
    block, blocks = fmt.block or weight.shape[1], fmt.blocks(weight.shape[1])
    small = block <= _SMALL_BLOCK
    shrink = (_SHRINK_SMALL if small else _SHRINK)[fmt.bits] if search else (1.0,)
    counts = None if importance is None else _counts(np.atleast_2d(importance), blocks, block)

    def fit(columns: Float, rows: slice) -> tuple[Float, Float]:
        return _fit(columns, fmt, shrink, None if counts is None else counts(rows))

    found = encode_tiles(weight, fmt, fit)
    return dual_grained(weight, found, counts) if fmt.grained else found


def _counts(importance: NDArray[np.floating], blocks: int, block: int) -> Callable[[slice], Float]:
    """Importance of some rows by block [block, blocks * rows], their means 1; [1, K] is of all."""
    mean = np.mean(importance, axis=1, dtype=np.float64, keepdims=True)
    relative = importance / np.where(mean > 0, mean, 1.0)
    if len(relative) > 1:
        return lambda rows: tile(relative[rows], blocks, block)
    alike = tile(relative, blocks, block)
    return lambda rows: alike


def _fit(
    w: Float, fmt: WeightFormat, shrink: tuple[float, ...], counts: Float | None = None
) -> tuple[Float, Float]:
    """Scale [m] and zero point [m] for the columns of w [block, m].

    counts: [block, blocks], of each of the equal parts of the columns in turn; or [block, m].
    """
    start, zero = full_range(w, fmt)
    if counts is None and (found := searched(w, start, zero, shrink, fmt)) is not None:
        return found, zero
    best_gain = np.full(w.shape[1], -1.0, np.float32)
    best = start
    d = np.empty_like(w)
    counted = d if counts is None else np.empty_like(w)
    for fraction in shrink:
        round_to_grid(w, start * np.float32(fraction), zero, fmt, out=d)
        if counts is not None:
            _count(d, counts, counted)
        wd, dd = np.einsum("ij,ij->j", w, counted), np.einsum("ij,ij->j", d, counted)
        fitted = np.divide(wd, dd, out=np.zeros_like(wd), where=dd > 0)
        gain = np.abs(fitted) * np.sqrt(dd)  # root of <w, d>^2 / <d, d>: squares may overflow
        best = np.where(gain > best_gain, fitted, best)
        np.maximum(best_gain, gain, out=best_gain)
    return best, zero


def _count(d: Float, counts: Float, out: Float) -> None:
    """out = d times the counts of its blocks."""
    parts = (*counts.shape, -1)
    np.multiply(d.reshape(parts), counts[..., None], out=out.reshape(parts))
