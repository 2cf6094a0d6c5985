"""Gram matrices H = mean of x xᵀ of layer inputs: check, damping, factor of the inverse."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lwqc.errors import InputError

Float = NDArray[np.float64]

# Least damping, relative to the mean of the diagonal: sums of float32 products are that exact.
_LEAST = 1e-6


def check_gram(gram: Float, k: int) -> None:
    """Raise InputError unless gram is a finite matrix [k, k]."""
    if gram.shape != (k, k):
        raise InputError(f"Gram matrix: expected shape {(k, k)}, found {gram.shape}")
    if not np.isfinite(gram).all():
        raise InputError("Gram matrix holds NaN or infinity; check the calibration data")


def damped(gram: Float, damp: float) -> Float:
    """gram + λI, λ = damp times the mean of the diagonal."""
    result = gram.copy()
    _damp(result, damp * _mean_energy(gram))
    return result


def _damp(gram: Float, ridge: float) -> None:
    np.einsum("ii->i", gram)[:] += ridge


def importance(gram: Float, damp: float) -> Float:
    """What a squared error of each input [k] counts: the diagonal of the damped matrix, never 0."""
    return np.maximum(np.diagonal(gram), 0) + max(damp, _LEAST) * _mean_energy(gram)


def upper_factor(gram: Float, damp: float) -> Float:
    """Upper triangular M [k, k] with MMᵀ = `damped`(gram, damp), in rows from the last one on.

    damp grows tenfold for as long as the matrix is not positive definite.
    """
    from scipy.linalg import LinAlgError, cholesky

    damp = max(damp, _LEAST)
    while True:
        # Symmetric: rows that lie one after the other are columns that do, which LAPACK takes.
        reverse = np.array(gram[::-1, ::-1], order="C").T
        _damp(reverse, damp * _mean_energy(gram))
        try:
            factor = cholesky(reverse, lower=False, overwrite_a=True, check_finite=False)
        except LinAlgError:
            damp *= 10
            continue
        upper: Float = factor.T[::-1, ::-1]
        return upper


def inverse_factor(gram: Float, damp: float) -> Float:
    """Upper triangular U [k, k] with UᵀU = `damped`(gram, damp)⁻¹: no inverse of it is formed."""
    from scipy.linalg import lapack

    factor = upper_factor(gram, damp)[::-1, ::-1].T
    inverse, _ = lapack.dtrtri(factor, lower=0, overwrite_c=1)
    upper: Float = inverse.T[::-1, ::-1]
    return upper


def _mean_energy(gram: Float) -> float:
    """Mean of the diagonal; 1 if no input ever fires."""
    mean = float(np.diagonal(gram).mean()) if len(gram) else 0.0
    return mean if mean > 0 else 1.0
