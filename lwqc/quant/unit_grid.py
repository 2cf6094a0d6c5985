"""The values that codes stand for at scale 1, and rounding to them: one definition for all methods.

Integer formats: code minus zero point. Float formats: an entry of the codebook. Float16 is never
rounded to here, see `half`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lwqc.quant.codebook import LEVELS, codes_of_levels, nearest_level
from lwqc.quant.formats import WeightFormat

Float = NDArray[np.float32]
Codes = NDArray[np.uint8]


def code_range(fmt: WeightFormat) -> tuple[int, int]:
    """Lowest and highest code of a format."""
    if not fmt.whole or not fmt.symmetric:
        return 0, 2**fmt.bits - 1
    half = 2 ** (fmt.bits - 1)
    lowest, highest = fmt.implicit_zero - half, fmt.implicit_zero + half - 1
    # 8-bit symmetric codes stay within +-127: -128 saturates in some int8 kernels, gains nothing.
    return (lowest + 1 if fmt.bits == 8 else lowest), highest


def unit_values(codes: Codes, zero: Float | Codes, fmt: WeightFormat) -> Float:
    """What codes stand for at scale 1; the zero points broadcast against them."""
    if fmt.kind == "fp16":
        return codes.view(np.float16).astype(np.float32)
    if not fmt.whole:
        return LEVELS[fmt.kind][codes]
    centred: Float = codes.astype(np.float32) - zero
    return centred


def codes_of(values: Float, zero: Float, fmt: WeightFormat) -> Codes:
    """The codes of values on the grid of scale 1."""
    if not fmt.whole:
        return codes_of_levels(values, fmt.kind)
    return (values + zero).astype(np.uint8)


def round_to_grid(
    weight: Float, scale: Float, zero: Float, fmt: WeightFormat, out: Float | None = None
) -> Float:
    """The values of the grid of scale 1 nearest to weight / scale; zero points broadcast."""
    result: Float = np.multiply(weight, np.float32(1) / scale, out=out)
    if not fmt.whole:
        result[...] = nearest_level(result, fmt.kind)
        return result
    lowest, highest = code_range(fmt)
    np.rint(result, out=result)
    if fmt.symmetric:  # numbers: clipping to arrays takes twice as long
        np.clip(result, lowest - fmt.implicit_zero, highest - fmt.implicit_zero, out=result)
    else:
        np.clip(result, lowest - zero, highest - zero, out=result)
    return result
