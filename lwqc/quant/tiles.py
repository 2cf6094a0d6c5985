"""Quantize a weight in pieces that fit the cache, on all cores."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from lwqc.quant.block_scale import stored_scale
from lwqc.quant.formats import WeightFormat
from lwqc.quant.grid import Encoded, Float
from lwqc.quant.unit_grid import codes_of, round_to_grid

_TILE = 1 << 17  # values per tile: a few float32 copies of it stay in the second-level cache

# Columns of blocks [block, m] of some rows -> scale [m], zero point [m]; see `tile` for the order.
Fit = Callable[[Float, slice], tuple[Float, Float]]


def encode_tiles(weight: NDArray[np.floating], fmt: WeightFormat, fit: Fit) -> Encoded:
    """Round a weight [N, K] to the scales and zero points that `fit` chooses for its blocks.

    weight: any strides (a transposed view is read without a full copy). `fit` sees a last block
    that K cuts short padded with zeros.
    """
    n, k = weight.shape
    block, blocks = fmt.block or k, fmt.blocks(k)
    codes = np.empty((n, blocks, block), np.uint8)
    scale = np.empty((n, blocks), np.float32)
    zero = np.empty((n, blocks), np.uint8)

    def fill(rows: slice) -> None:
        columns = tile(weight[rows], blocks, block)
        s, z = fit(columns, rows)
        s = stored_scale(s, fmt)
        q = codes_of(round_to_grid(columns, s, z, fmt), z, fmt)
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


def tile(rows: NDArray[np.floating], blocks: int, block: int) -> Float:
    """Some output channels [r, k], stored either way, as columns of blocks [block, blocks * r]."""
    r, k = rows.shape
    if k < blocks * block:
        rows = np.pad(rows, ((0, 0), (0, blocks * block - k)))
    columns = rows.T.reshape(blocks, block, r).transpose(1, 0, 2)
    return np.ascontiguousarray(columns, np.float32).reshape(block, blocks * r)
