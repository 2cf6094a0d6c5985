"""The values of float formats: those of MatMulBnb4 (com.microsoft), and float8 E4M3.

nf4: quantiles of a normal distribution (2305.14314, appendix E). fp4: E2M1 over 6, but for the
subnormal, which is 1/192 and not 1/12; both as the bitsandbytes library defines them. fp8: E4M3
without infinities, over its largest number. e2m1: twice its numbers, which makes integers of them.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from lwqc.quant.formats import Kind

Float = NDArray[np.float32]
Codes = NDArray[np.uint8]

_NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
_FP4_MAGNITUDES = (0.0, 1 / 192, 4 / 6, 1.0, 2 / 6, 3 / 6, 1 / 6, 1.5 / 6)
_E2M1_MAGNITUDES = (0, 1, 2, 3, 4, 6, 8, 12)
FP8_MAX = 448.0  # of E4M3


def _fp8_levels() -> tuple[float, ...]:
    """E4M3 over 448, in the order of its codes; the two codes of NaN stand for 0, unused."""
    levels = []
    for code in range(256):
        sign, exponent, digits = -1 if code >> 7 else 1, code >> 3 & 15, code & 7
        value = digits / 8 * 2.0**-6 if exponent == 0 else (1 + digits / 8) * 2.0 ** (exponent - 7)
        levels.append(0.0 if code & 127 == 127 else sign * value / FP8_MAX)
    return tuple(levels)


LEVELS: dict[Kind, Float] = {
    "nf4": np.array(_NF4, np.float32),
    "fp8": np.array(_fp8_levels(), np.float32),
    "e2m1": np.array([*_E2M1_MAGNITUDES, *(-v for v in _E2M1_MAGNITUDES)], np.float32),
    "fp4": np.array([*_FP4_MAGNITUDES, *(-v for v in _FP4_MAGNITUDES)], np.float32),
}


def nearest_level(values: Float, kind: Kind) -> Float:
    """The level nearest to each value."""
    levels, _, middles = _sorted(kind)
    return levels[np.searchsorted(middles, values)]


def codes_of_levels(levels: Float, kind: Kind) -> Codes:
    """The codes of values that are levels."""
    known, codes, _ = _sorted(kind)
    return codes[np.searchsorted(known, levels)]


@cache
def _sorted(kind: Kind) -> tuple[Float, Codes, Float]:
    """Distinct levels in rising order, their codes, and the middles between them."""
    levels, codes = np.unique(LEVELS[kind], return_index=True)
    return levels, codes.astype(np.uint8), np.float32(0.5) * (levels[1:] + levels[:-1])
