"""Least-squares refit of a layer whose input changed: weights of the kept channels take over.

The closed form of optimal brain surgeon for a set of columns, with the input after pruning in
place of the kept part of the input before it (OBSPA, 2403.18955).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]

# Least ridge, relative to the mean square of the inputs: sums of float32 products are that exact.
_LEAST = 1e-5
_POWERS = 4  # of ten that dampings are tried in
_OF_HALF = 0.25  # of the damping of half of the rows: that of all
_PLENTY = 64  # rows for each feature from which damping makes next to no difference


def refit(
    weight: NDArray[np.floating],
    target: NDArray[np.floating],
    gram: Float,
    cross: Float,
    left_sum: Float,
    right_sum: Float,
    rows: int,
    damp: float = 0.01,
    has_bias: bool = False,
) -> tuple[Float, Float]:
    """Weights that make y·W'ᵀ + shift closest to x·targetᵀ, and that shift of the bias.

    weight: [out, m] as sliced; target: [out, k] before pruning. x are rows of the input before
    pruning and y of the one after: gram = Σ y yᵀ [m, m], cross = Σ x yᵀ [k, m], left_sum = Σ x
    [k], right_sum = Σ y [m], over `rows` rows. Returns [out, m] and [out].

    Minimises Σ |target·x - W'·y - shift|² + λ |W' - weight|², λ = damp times the mean of the
    diagonal of Σ y yᵀ (about the mean if there is a bias, which then takes up the mean; else the
    shift is 0). Directions that the data does not show stay as they are; without rows, or with
    values that are not finite, everything does.
    """
    old = np.asarray(weight, np.float64)
    wanted = np.asarray(target, np.float64)
    if rows == 0 or not (np.isfinite(gram).all() and np.isfinite(cross).all()):
        return old, np.zeros(len(old))
    scale = _mean_diagonal(gram)
    if has_bias:
        gram = gram - np.outer(right_sum, right_sum / rows)
        cross = cross - np.outer(left_sum, right_sum / rows)
    ridge = damp * _mean_diagonal(gram) + _LEAST * scale
    missing = wanted @ cross - old @ gram
    new = old + _solve(gram, missing, ridge)
    shift = bias_correction(new, wanted, left_sum, right_sum, rows)
    return new, shift if has_bias else np.zeros(len(old))


@dataclass(frozen=True)
class Moments:
    """Sums over rows, of one convolution group; shapes as in `refit`."""

    gram: Float
    cross: Float
    left_sum: Float
    right_sum: Float
    rows: int


def held_out_damp(
    weight: NDArray[np.floating],
    target: NDArray[np.floating],
    halves: tuple[Moments, Moments],
    has_bias: bool,
    damp: float = 0.01,
) -> float:
    """A quarter of the damping with which `refit` on either half of the rows is best on the other.

    Of `damp` and powers of ten of it, and at least `damp`. Where rows are few beside features, or
    alike as the tokens of one image are, little damping fits what only they have in common. With
    many it makes next to no difference, and is not tried. All rows need less of it than half of
    them, by the theory of ridge regression half as much; a quarter was measured to be better
    (`python -m benchmarks.few_samples`).
    """
    features = len(halves[0].gram)
    if min(h.rows for h in halves) == 0 or max(h.rows for h in halves) > _PLENTY * features:
        return damp
    tried = [damp * 10.0**power for power in range(_POWERS)]
    errors = [
        sum(
            _error_on(other, target, *refit(
                weight, target, own.gram, own.cross, own.left_sum, own.right_sum, own.rows, d,
                has_bias,
            ))
            for own, other in (halves, halves[::-1])
        )
        for d in tried
    ]  # fmt: skip
    if not np.isfinite(errors).all():
        return damp
    return max(damp, _OF_HALF * tried[int(np.argmin(errors))])


def _error_on(seen: Moments, target: NDArray[np.floating], weight: Float, shift: Float) -> float:
    """Σ |target·x - weight·y - shift|², less what does not depend on weight and shift."""
    wanted = np.asarray(target, np.float64)
    squares = np.vdot(weight @ seen.gram, weight) - 2 * np.vdot(wanted @ seen.cross, weight)
    means = weight @ seen.right_sum - wanted @ seen.left_sum
    return float(squares + 2 * shift @ means + seen.rows * shift @ shift)


def bias_correction(
    weight: NDArray[np.floating],
    target: NDArray[np.floating],
    left_sum: Float,
    right_sum: Float,
    rows: int,
) -> Float:
    """Shift of the bias [out] that restores the mean output; the weight stays (shapes: `refit`)."""
    if rows == 0:
        return np.zeros(len(weight))
    shift: Float = (target @ left_sum - weight @ right_sum) / rows
    return shift if np.isfinite(shift).all() else np.zeros(len(weight))


def _mean_diagonal(matrix: Float) -> float:
    return float(max(np.diagonal(matrix).mean(), 0.0))


def _solve(gram: Float, right: Float, ridge: float) -> Float:
    """Right (gram + ridge I)⁻¹, with ten times the ridge for as long as that is not definite."""
    from scipy.linalg import LinAlgError, cho_factor, cho_solve

    if ridge == 0:
        return np.zeros_like(right)
    while True:
        damped = gram.copy()
        damped.flat[:: len(damped) + 1] += ridge
        try:
            factor = cho_factor(damped, lower=True, overwrite_a=True, check_finite=False)
            solved: Float = cho_solve(factor, right.T, check_finite=False).T
            return solved
        except LinAlgError:
            ridge *= 10
