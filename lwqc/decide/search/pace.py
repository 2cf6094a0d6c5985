"""Costs of candidates from their parts, corrected by candidates that were measured.

Each part is predicted, from small sessions or by counting bytes, and none of them exactly: kernels
do not get faster in proportion to their width, and operators cost something however little they do.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Parts = NDArray[np.float64]
# Parts of a time: of float kernels and of low-bit kernels what shrinks with the share of weights
# that is left, of both what stays, of other operators by the share of what they write, and whole. A
# first guess.
TIME: Parts = np.array([1.0, 1.0, 1.0, 0.8, 0.2])
_TRUST = 0.02  # in the guess, beside relative squared errors of measured candidates
_LEAST = 0.05  # of a guess


def fitted(measured: Sequence[tuple[Parts, float]], guess: Parts) -> Parts:
    """What each part [P] counts: close to the guess, and right for the candidate measured last.

    measured: parts of candidates [P] and what they cost, above 0. guess [P]: above 0. Ridge
    regression of relative errors.
    """
    if not measured:
        return guess
    rows = np.array([parts * guess / cost for parts, cost in measured])
    missed = 1 - rows.sum(1)
    change = np.linalg.solve(rows.T @ rows + _TRUST * np.eye(len(guess)), rows.T @ missed)
    pace = guess * np.maximum(1 + change, _LEAST)
    parts, cost = measured[-1]
    return np.asarray(pace * (cost / max(float(parts @ pace), 1e-12)))
