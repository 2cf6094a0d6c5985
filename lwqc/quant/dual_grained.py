"""Scales of blocks as whole multiples of the scale of their channel, in two phases (2310.04836).

First each block gets the scale of least error, in float. Then the scale of the channel is searched:
each candidate gives every block the multiple nearest to its own scale, and the candidate of least
error stays. Codes times multiples are integers of 8 bits (7 where kernels would overflow), which
one integer product multiplies. Those of e2m1 are floats of 4 bits, and their multiples powers of
two (2307.09782).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from lwqc.quant.formats import WeightFormat
from lwqc.quant.grid import Encoded, Float
from lwqc.quant.tiles import Rows, encode_tiles
from lwqc.quant.unit_grid import round_to_grid

GRAINED_METHODS = ("rtn", "gptq", "gptq-order", "gpfq", "descent")
_CLIPPED = tuple(float(x) for x in np.linspace(1.05, 0.7, 15))  # of the widest block's scale
_SMALLEST = np.float32(1e-30)  # of a channel: its inverse is a number


def not_for_grained(method: str) -> str:
    """Why a method cannot choose codes of grained formats."""
    return (
        f"grained scales stay as they were searched: one of {', '.join(GRAINED_METHODS)}, not "
        f"{method}"
    )


def dual_grained(weight: Rows, first: Encoded, counts: Callable[[slice], Float] | None) -> Encoded:
    """A weight [N, K] with grained scales, from float scales of its blocks.

    first: of a grained format, with the scales that phase 1 found. counts: what errors of some rows
    count, as `range_search` has it.
    """
    fmt = first.format
    channels = np.ones(len(first.scale), np.float32)
    empty = (first.codes == first.zero[..., None]).all(axis=2)
    scales = np.where(empty, np.float32(0), first.scale)

    def fit(columns: Float, rows: slice) -> tuple[Float, Float]:
        wanted, zero = scales[rows].T, first.zero[rows].T.astype(np.float32)
        best = np.full(wanted.shape[1], np.inf)
        scale = wanted
        widest = np.maximum(np.abs(wanted).max(axis=0), _SMALLEST)
        for fraction in _CLIPPED:
            channel = (widest * np.float32(fraction / fmt.largest_multiple)).astype(np.float32)
            tried = channel * _multiples(wanted / channel, fmt)
            lost = _errors(columns, tried, zero, fmt, None if counts is None else counts(rows))
            better = lost < best
            best = np.where(better, lost, best)
            scale = np.where(better, tried, scale)
            channels[rows] = np.where(better, channel, channels[rows])
        return np.ascontiguousarray(scale).reshape(-1), np.ascontiguousarray(zero).reshape(-1)

    found = encode_tiles(weight, fmt, fit)
    return Encoded(fmt, found.codes, found.scale, found.zero, found.k, channel=channels)


def multiples(encoded: Encoded) -> NDArray[np.int8]:
    """Scales of blocks [N, blocks] over those of channels."""
    assert encoded.channel is not None
    found: NDArray[np.int8] = np.rint(encoded.scale / encoded.channel[:, None]).astype(np.int8)
    return found


def _multiples(ratio: Float, fmt: WeightFormat) -> Float:
    """The multiples nearest to ratios, which have a sign."""
    sign, most = np.where(ratio < 0, np.float32(-1), np.float32(1)), fmt.largest_multiple
    size = np.abs(ratio)
    if fmt.kind == "e2m1":  # the nearest power by ratio
        power = np.rint(np.log2(np.maximum(size, np.float32(1))))
        near = np.exp2(np.minimum(power, np.floor(np.log2(most))))
    else:
        near = np.clip(np.rint(size), 1, most)
    found: Float = (sign * near).astype(np.float32)
    return found


def _errors(
    columns: Float, scale: Float, zero: Float, fmt: WeightFormat, counts: Float | None
) -> NDArray[np.float32]:
    """Squared error of each row; columns [block, blocks * rows], scale and zero [blocks, rows]."""
    flat = np.ascontiguousarray(scale).reshape(-1)
    lost = round_to_grid(columns, flat, np.ascontiguousarray(zero).reshape(-1), fmt)
    lost *= flat
    lost -= columns
    lost *= lost
    parts = lost.reshape(len(lost), len(scale), -1)
    if counts is not None:
        parts = parts * counts.reshape(len(lost), len(scale), -1)
    total: NDArray[np.float32] = parts.sum(axis=(0, 1))
    return total
