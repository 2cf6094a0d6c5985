"""Error that a changed weight makes at the output of its layer."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lwqc.quant.gram_matrix import check_gram


def output_error(
    weight: NDArray[np.floating],
    quantized: NDArray[np.floating],
    gram: NDArray[np.float64] | None,
) -> float:
    """Squared error of the output over its energy: tr(E H Eᵀ) / tr(W H Wᵀ), E = W - Q.

    weight W, quantized Q: [N, K]; gram: H = mean of x xᵀ [K, K] or, for the groups of a
    convolution, [groups, K, K]; None stands for the identity. 0 if the output is 0 and stays so,
    infinite if it does not stay so. Raises InputError as `check_gram` does.
    """
    original = np.asarray(weight, np.float64)
    error = original - quantized
    if gram is None:
        lost, whole = float(np.vdot(error, error)), float(np.vdot(original, original))
    else:
        grams = gram if gram.ndim == 3 else gram[None]
        rows = len(original) // len(grams)
        lost = whole = 0.0
        for i, matrix in enumerate(grams):
            check_gram(matrix, original.shape[1])
            part = slice(i * rows, (i + 1) * rows)
            lost += _energy(error[part], matrix)
            whole += _energy(original[part], matrix)
    if whole > 0:
        return lost / whole
    return 0.0 if lost == 0 else np.inf


def _energy(weight: NDArray[np.float64], gram: NDArray[np.float64]) -> float:
    return max(float(np.vdot(weight @ gram, weight)), 0.0)
