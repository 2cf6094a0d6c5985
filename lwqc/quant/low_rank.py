"""Products of two thin matrices: for the error of a quantized weight, or for a table of rows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lwqc.errors import InputError
from lwqc.quant.gram_matrix import check_gram
from lwqc.quant.rotation import hadamard

Float = NDArray[np.float64]
_SEED = 0  # of the rotation between the factors of a table


def low_rank(
    error: NDArray[np.floating], rank: int, gram: Float | None = None
) -> tuple[Float, Float]:
    """The factors A [N, r], B [r, K] whose product is closest to an error E = W - Q [N, K].

    LoRC (2307.09782).

    gram: H = mean of x xᵀ [K, K]; minimises tr((E - AB) H (E - AB)ᵀ), without it |E - AB|².
    Columns of A are orthonormal, the most important first. Raises InputError unless
    1 <= r <= min(N, K), and as `check_gram` does.

    With H = LLᵀ and U the leading left singular vectors of EL, the best AB is U (Uᵀ E): U are the
    leading eigenvectors of E H Eᵀ, so that L is not needed and H may be singular.
    """
    _check_rank(rank, error.shape)
    full = np.asarray(error, np.float64)
    if gram is not None:
        check_gram(gram, full.shape[1])
    tall = full.shape[0] > full.shape[1]
    basis, core = np.linalg.qr(full) if tall else (None, full)
    energy = core @ (core.T if gram is None else gram @ core.T)
    vectors = np.linalg.eigh(energy).eigenvectors[:, : -rank - 1 : -1]
    left: Float = np.ascontiguousarray(vectors if basis is None else basis @ vectors)
    return left, left.T @ full


def low_rank_rows(table: NDArray[np.floating], rank: int, weights: Float) -> tuple[Float, Float]:
    """The factors A [V, r], B [r, D] whose product is closest to a table W [V, D] of rows.

    weights: how much each row counts, w [V], none below 0; minimises Σ w_i |W_i - (AB)_i|². Of the
    factors that have this product, columns of A and rows of B are as even in size as a rotation
    makes them, so that no block of a number format mixes large with small. Raises InputError unless
    1 <= r <= min(V, D).

    Rows of B span the leading eigenvectors of Wᵀ diag(w) W, and A = W Bᵀ.
    """
    _check_rank(rank, table.shape)
    full = np.asarray(table, np.float64)
    energy = full.T @ (weights[:, None] * full)
    vectors = np.linalg.eigh(energy).eigenvectors[:, : -rank - 1 : -1] @ hadamard(rank, _SEED)
    return full @ vectors, np.ascontiguousarray(vectors.T)


def _check_rank(rank: int, shape: tuple[int, ...]) -> None:
    if not 1 <= rank <= min(shape):
        raise InputError(f"low rank: expected a rank in 1..{min(shape)}, found {rank}")
