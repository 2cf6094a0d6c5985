"""Codes of any number of bits without a gap: planes of 4, 2 and 1 bits, each packed into bytes.

A code of 5 bits is one of 4 bits and one of a single bit above it. Eight codes at a time, so that
all planes have whole bytes; the last eight are filled up with zeros.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.uint8]
_WIDTHS = (4, 2, 1)
GROUP = (2, 2, 2)  # eight codes, in the order in which bytes of each plane hold them


def planes_of(bits: int) -> tuple[tuple[int, int], ...]:
    """The width of each plane and the bits below it, for codes of 1 to 7 bits."""
    widths = [width for width in _WIDTHS if bits & width]
    return tuple((width, sum(widths[:i])) for i, width in enumerate(widths))


def plane_shape(codes: int, width: int) -> tuple[int, ...]:
    """The bytes of a plane: each stands for what is left of a group of eight codes behind it."""
    return (-(-codes // 8), *GROUP[: {4: 2, 2: 1, 1: 0}[width]])


def plane(codes: Codes, width: int, below: int) -> Codes:
    """Bytes of the plane of that width above so many bits, first codes in the lowest bits."""
    flat = codes.ravel()
    if rest := -flat.size % 8:
        flat = np.concatenate([flat, np.zeros(rest, np.uint8)])
    fields = (flat >> np.uint8(below) & np.uint8(2**width - 1)).reshape(-1, 8 // width)
    shifts = (np.arange(8 // width) * width).astype(np.uint8)
    packed: Codes = np.bitwise_or.reduce(fields << shifts, axis=1)
    return packed.reshape(plane_shape(codes.size, width))


def byte_table(width: int, below: int) -> NDArray[np.int32]:
    """What each byte of such a plane adds to its codes: int32 [256, ...], one axis of two each."""
    shifts = np.arange(8 // width) * width
    fields = (np.arange(256)[:, None] >> shifts & 2**width - 1) << below
    left = GROUP[len(plane_shape(8, width)) - 1 :]
    table: NDArray[np.int32] = fields.astype(np.int32).reshape(256, *left)
    return table
