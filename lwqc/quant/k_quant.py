"""k-quant: least squares for scale and minimum over trial scales, large weights counting more.

The fit of llama.cpp (`make_qkx2_quants`, `make_qx_quants`; k_quant in onnxruntime), from its
formulas. With importance c and q = codes of a trial scale, the best scale s and minimum m of
c·(w - s q - m)² are those of a line through (q, w). The minimum becomes an integer zero point in
each trial, after which codes and scale are fitted again: what is compared is what will be stored.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lwqc.quant.block_scale import full_range
from lwqc.quant.formats import WeightFormat
from lwqc.quant.grid import Encoded, Float
from lwqc.quant.tiles import encode_tiles
from lwqc.quant.unit_grid import round_to_grid

# Steps in the full range, relative to those of the format; more than 1 clips. llama.cpp tries
# 0.83-1.3 in 2 bits and 0.93-1.06 in 4; large blocks, which it does not have, gain from more.
_TRIALS = {
    2: (1.0, *np.linspace(0.85, 1.6, 16)),
    3: (1.0, *np.linspace(0.88, 1.45, 16)),
    4: (1.0, *np.linspace(0.9, 1.3, 16)),
    8: (1.0, *np.linspace(0.99, 1.08, 10)),
    7: (1.0, *np.linspace(0.99, 1.08, 10)),
}
_LEAST = np.float32(1e-6)  # importance, in steps: for blocks of zeros


def k_quant(weight: NDArray[np.floating], fmt: WeightFormat) -> Encoded:
    """Quantize a weight [N, K] with importance sqrt(mean(w²) + w²) within each block.

    A symmetric format has no minimum: only its scale is fitted. Raises InputError as
    `range_search.encode` does.
    """
    return encode_tiles(weight, fmt, lambda columns, rows: _fit(columns, fmt))


def _fit(w: Float, fmt: WeightFormat) -> tuple[Float, Float]:
    """Scale [m] and zero point [m] for the columns of w [block, m]."""
    start, zero = full_range(w, fmt)
    u = w / start
    squares = u * u
    counts = np.maximum(np.sqrt(squares + squares.mean(axis=0)), _LEAST)
    best = np.ones_like(start), zero
    least = np.full_like(start, np.inf)
    bottom, top = np.minimum(u.min(axis=0), 0), 2**fmt.bits - 1
    for trial in _TRIALS[fmt.bits]:
        scale, at = np.full_like(start, 1 / trial), zero
        if not fmt.symmetric:
            q = np.clip(np.rint((u - bottom) * np.float32(trial)), 0, top)
            scale, shift = line(u, q, counts, (scale, zero))
            at = np.clip(np.rint(shift), 0, top)
        d = round_to_grid(u, scale, at, fmt)
        cd = counts * d
        wd, dd = np.einsum("ij,ij->j", u, cd), np.einsum("ij,ij->j", d, cd)
        scale = np.divide(wd, dd, out=scale, where=dd > 0)
        error = np.square(u - scale * d)
        loss = np.einsum("ij,ij->j", counts, error)
        better = loss < least
        best = np.where(better, scale, best[0]), np.where(better, at, best[1])
        np.minimum(least, loss, out=least)
    return best[0] * start, best[1]


def line(u: Float, q: Float, counts: Float | None, old: tuple[Float, Float]) -> tuple[Float, Float]:
    """Scale [m] and shift [m] of the line u ≈ scale (q - shift), by least squares.

    u, q, counts: [block, m]. old: the answer where all codes are equal or the line falls.
    """
    total = np.float32(len(u)) if counts is None else counts.sum(axis=0)
    cq, cu = (q, u) if counts is None else (counts * q, counts * u)
    sum_q, sum_u = cq.sum(axis=0), cu.sum(axis=0)
    spread = total * np.einsum("ij,ij->j", q, cq) - sum_q**2
    slope = total * np.einsum("ij,ij->j", q, cu) - sum_q * sum_u
    sound = (spread > 1e-6 * np.square(sum_q)) & (slope > 0)
    scale = np.divide(slope, spread, out=old[0].copy(), where=sound)
    return scale, np.where(sound, (sum_q - sum_u / scale) / total, old[1])
