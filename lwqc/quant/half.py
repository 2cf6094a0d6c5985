"""Weights as float16: half the bytes of float32, and no error to speak of."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lwqc.errors import InputError
from lwqc.quant.formats import WeightFormat
from lwqc.quant.grid import Encoded

FORMAT = WeightFormat(16, kind="fp16")
# Largest magnitudes of a weight for which float16 has 11 digits for all that matters in it.
_PEAKS = (1e-3, 6e4)


def fits_half(peak: float) -> bool:
    """Whether float16 does for a weight whose largest magnitude is `peak`."""
    return peak == 0 or _PEAKS[0] < peak < _PEAKS[1]


def encode_half(weight: NDArray[np.floating]) -> Encoded:
    """A weight [N, K] as float16. Raises InputError for numbers beyond its range."""
    with np.errstate(over="ignore"):
        halves = np.ascontiguousarray(weight, np.float16)
    if not np.isfinite(halves).all():
        raise InputError("weight holds numbers that float16 has not")
    n, k = halves.shape
    ones, zeros = np.ones((n, 1), np.float32), np.zeros((n, 1), np.uint8)
    return Encoded(FORMAT, halves.view(np.uint8).reshape(n, 1, 2 * k), ones, zeros, k)
