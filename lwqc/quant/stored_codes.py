"""Codes that another tool stored, as an `Encoded` weight."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lwqc.quant.formats import BLOCKS, ScaleType, WeightFormat
from lwqc.quant.grid import Encoded


def stored_format(
    bits: int,
    block: int | None,
    zero: NDArray[np.generic] | None,
    scale: ScaleType,
    positive: bool,
) -> WeightFormat | None:
    """The format of stored codes, or None where there is no name for it.

    zero: unsigned zero points; None where the middle of the range means 0. positive: all scales
    are.
    """
    if bits not in (2, 4, 8) or (block is not None and block not in BLOCKS):
        return None
    middle = 2 ** (bits - 1)
    symmetric = zero is None or bool((zero == middle).all())
    return WeightFormat(bits, block, symmetric, scale, "int", positive and symmetric and bits < 8)


def from_stored(
    codes: NDArray[np.generic],
    scale: NDArray[np.floating],
    zero: NDArray[np.generic] | None,
    fmt: WeightFormat,
) -> Encoded:
    """An encoded weight from unsigned codes [N, K], scales and zero points [N, blocks].

    Scales and zero points of one element stand for all; one scale per tensor becomes one per
    channel with the same codes.
    """
    n, k = codes.shape
    blocks, block = fmt.blocks(k), fmt.block or k
    middle = np.uint8(fmt.implicit_zero)
    zeros = np.full((n, blocks), middle, np.uint8)
    if zero is not None:
        zeros[...] = zero.reshape(-1, blocks) if zero.size > 1 else zero.reshape(1, 1)
    scales = np.empty((n, blocks), np.float32)
    scales[...] = scale.reshape(-1, blocks) if scale.size > 1 else scale.reshape(1, 1)
    padded = np.repeat(zeros, block, axis=1)
    padded[:, :k] = codes
    return Encoded(fmt, padded.reshape(n, blocks, block), scales, zeros, k)
