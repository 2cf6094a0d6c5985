"""Low-rank correction of a quantized weight; LoRC (2307.09782)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lwqc.errors import InputError
from lwqc.quant.gram_matrix import check_gram

Float = NDArray[np.float64]


def low_rank(
    error: NDArray[np.floating], rank: int, gram: Float | None = None
) -> tuple[Float, Float]:
    """The factors A [N, r], B [r, K] whose product is closest to an error E = W - Q [N, K].

    gram: H = mean of x xᵀ [K, K]; minimises tr((E - AB) H (E - AB)ᵀ), without it |E - AB|².
    Columns of A are orthonormal, the most important first. Raises InputError unless
    1 <= r <= min(N, K), and as `check_gram` does.

    With H = LLᵀ and U the leading left singular vectors of EL, the best AB is U (Uᵀ E): U are the
    leading eigenvectors of E H Eᵀ, so that L is not needed and H may be singular.
    """
    if not 1 <= rank <= min(error.shape):
        raise InputError(f"low rank: expected a rank in 1..{min(error.shape)}, found {rank}")
    full = np.asarray(error, np.float64)
    if gram is not None:
        check_gram(gram, full.shape[1])
    tall = full.shape[0] > full.shape[1]
    basis, core = np.linalg.qr(full) if tall else (None, full)
    energy = core @ (core.T if gram is None else gram @ core.T)
    vectors = np.linalg.eigh(energy).eigenvectors[:, : -rank - 1 : -1]
    left: Float = np.ascontiguousarray(vectors if basis is None else basis @ vectors)
    return left, left.T @ full
