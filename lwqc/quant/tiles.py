"""Quantize a weight in pieces that fit the cache, on all cores."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lwqc.quant.block_scale import stored_scale
from lwqc.quant.formats import WeightFormat
from lwqc.quant.grid import Encoded, Float
from lwqc.quant.native import encoded
from lwqc.quant.unit_grid import codes_of, round_to_grid

_TILE = 1 << 17  # values per tile: a few float32 copies of it stay in the second-level cache
_READ = 1 << 22  # values that a thread reads at once of a weight that is in a file


class Rows(Protocol):
    """A weight [N, K] whose rows are had by slices: an array, or what reads them from a file."""

    @property
    def shape(self) -> tuple[Any, ...]:
        """N and K."""
        ...

    def __getitem__(self, rows: slice, /) -> NDArray[np.floating]: ...


# Columns of blocks [block, m] of some rows -> scale [m], zero point [m]; see `tile` for the order.
Fit = Callable[[Float, slice], tuple[Float, Float]]


def encode_tiles(weight: Rows, fmt: WeightFormat, fit: Fit) -> Encoded:
    """Round a weight [N, K] to the scales and zero points that `fit` chooses for its blocks.

    weight: any strides (a transposed view is read without a full copy), or in a file, of which each
    thread holds a few megabytes. Rows do not depend on each other, so that neither do the results
    on the number of threads. `fit` sees a last block
    that K cuts short padded with zeros.
    """
    n, k = weight.shape
    block, blocks = fmt.block or k, fmt.blocks(k)
    codes = np.empty((n, blocks, block), np.uint8)
    scale = np.empty((n, blocks), np.float32)
    zero = np.empty((n, blocks), np.uint8)

    def fill(rows: slice, part: NDArray[np.floating]) -> None:
        columns = tile(part, blocks, block)
        s, z = fit(columns, rows)
        s = stored_scale(s, fmt)
        if not encoded(columns, s, z, fmt, out=codes[rows]):
            q = codes_of(round_to_grid(columns, s, z, fmt), z, fmt)
            codes[rows] = q.reshape(block, blocks, -1).transpose(2, 1, 0)
        scale[rows], zero[rows] = s.reshape(blocks, -1).T, z.reshape(blocks, -1).T

    threads = usable_cores()
    step = max(1, _TILE // (blocks * block))
    together = min(_READ // (blocks * block), n // (4 * threads)) // step * step or step

    def read_and_fill(start: int) -> None:
        part = weight[start : start + together]
        for at in range(0, len(part), step):
            rows = slice(start + at, min(n, start + at + step))
            fill(rows, part[at : at + step])

    starts = range(0, n, together)
    if len(starts) == 1:
        read_and_fill(0)
    else:
        with ThreadPoolExecutor(threads) as pool:  # numpy releases the lock, and so do reads
            list(pool.map(read_and_fill, starts))
    return Encoded(fmt, codes, scale, zero, k)


def usable_cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def tile(rows: NDArray[np.floating], blocks: int, block: int) -> Float:
    """Some output channels [r, k], stored either way, as columns of blocks [block, blocks * r]."""
    r, k = rows.shape
    if k < blocks * block:
        rows = np.pad(rows, ((0, 0), (0, blocks * block - k)))
    columns = rows.T.reshape(blocks, block, r).transpose(1, 0, 2)
    return np.ascontiguousarray(columns, np.float32).reshape(block, blocks * r)
