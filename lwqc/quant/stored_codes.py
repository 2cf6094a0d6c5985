"""Codes that another tool stored, as an `Encoded` weight."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from lwqc.quant.formats import BLOCKS, ScaleType, WeightFormat
from lwqc.quant.grid import Encoded

_SEVEN_BITS = 64  # 2 * 64 * 255 < 2 ** 15
_AT_ONCE = 1 << 20  # numbers in double precision
_SAME = 1e-4  # of the largest weight: far below a step of 8 bits


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


def rescaled(encoded: Encoded, weight: NDArray[np.floating]) -> Encoded | None:
    """The same codes for a weight [N, K] whose rows were multiplied; None for any other weight.

    A normalisation that was folded into a layer multiplies its outputs.
    """
    before = encoded.decode()
    if before.shape != weight.shape:
        return None
    n, k = weight.shape
    some = max(_AT_ONCE // max(k, 1), 1)
    pieces = [
        _factor(before[at : at + some], weight[at : at + some]) for at in range(0, n, some)
    ] or [(np.ones(0), 0.0)]
    factor, error = np.concatenate([f for f, _ in pieces]), max(e for _, e in pieces)
    if not error <= _SAME * np.abs(weight).max(initial=0):
        return None
    if (np.abs(factor - 1) <= _SAME).all():
        return encoded
    scale = encoded.scale * factor[:, None].astype(np.float32)
    if encoded.format.scale == "float16":
        scale = scale.astype(np.float16).astype(np.float32)
        if not np.isfinite(scale).all():
            return None
    return replace(encoded, scale=scale)


def _factor(
    before: NDArray[np.floating], weight: NDArray[np.floating]
) -> tuple[NDArray[np.float64], float]:
    """What rows were multiplied by, and the largest error that this leaves."""
    old, new = before.astype(np.float64), weight.astype(np.float64)
    energy, shared = (old * old).sum(1), (old * new).sum(1)
    factor = np.divide(shared, energy, out=np.ones_like(energy), where=energy > 0)
    old *= factor[:, None]
    old -= new
    return factor, float(np.abs(old, out=old).max(initial=0))


def with_positive_scales(encoded: Encoded) -> Encoded:
    """The same weight [N, K] of 8 bits with scales that are positive.

    Codes of rows with a negative scale change sign; the one code that has no opposite, -128, moves
    by a step.
    """
    negative = encoded.scale < 0
    if not negative.any():
        return encoded
    middle = encoded.format.implicit_zero
    flipped = np.clip(2 * middle - encoded.codes.astype(np.int16), 0, 2 * middle - 1)
    codes = np.where(negative[..., None], flipped.astype(np.uint8), encoded.codes)
    return replace(encoded, codes=codes, scale=np.abs(encoded.scale))


def fits_seven_bits(codes: NDArray[np.generic], middle: int = 128) -> bool:
    """Whether sums of two products of 8-bit codes with uint8 fit 16 bits: within -64 to 64.

    onnxruntime's `reduce_range` gives such codes.
    """
    return bool(codes.size) and np.abs(codes.astype(np.int16) - middle).max() <= _SEVEN_BITS
