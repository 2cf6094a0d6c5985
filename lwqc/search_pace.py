"""Milliseconds of candidates from the parts of their time, corrected by those that were measured.

Each part is predicted from small sessions or by bytes written, and none of them exactly: kernels do
not get faster in proportion to their width, and operators cost something however little they do.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Parts = NDArray[np.float64]
# Of float kernels and of low-bit kernels by the share of weights that is left, of both whole, of
# other operators by the share of what they write, and whole. The first guess of what each counts.
GUESS: Parts = np.array([0.9, 0.9, 0.1, 0.8, 0.2])
_TRUST = 0.02  # in the guess, beside relative squared errors of measured candidates
_LEAST = 0.05  # of a guess


def fitted(measured: Sequence[tuple[Parts, float]]) -> Parts:
    """What each part [5] counts: close to the guess, and right for the candidate measured last.

    measured: parts of candidates [5] and their milliseconds, above 0. Ridge regression of relative
    errors.
    """
    if not measured:
        return GUESS
    rows = np.array([parts * GUESS / time for parts, time in measured])
    missed = 1 - rows.sum(1)
    change = np.linalg.solve(rows.T @ rows + _TRUST * np.eye(len(GUESS)), rows.T @ missed)
    pace = GUESS * np.maximum(1 + change, _LEAST)
    parts, time = measured[-1]
    return np.asarray(pace * (time / max(float(parts @ pace), 1e-12)))
