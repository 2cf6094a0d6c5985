"""Error that a changed weight makes at the output of its layer."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lwqc.quant.gram_matrix import check_gram


def output_error(
    weight: NDArray[np.floating], quantized: NDArray[np.floating], gram: NDArray[np.float64]
) -> float:
    """Squared error of the output over its energy: tr(E H Eᵀ) / tr(W H Wᵀ), E = W - Q.

    weight W, quantized Q: [N, K]; gram: H = mean of x xᵀ [K, K]. 0 if the output is 0 and stays so,
    infinite if it does not stay so. Raises InputError as `check_gram` does.
    """
    check_gram(gram, weight.shape[1])
    original = np.asarray(weight, np.float64)
    lost, whole = _energy(original - quantized, gram), _energy(original, gram)
    if whole > 0:
        return lost / whole
    return 0.0 if lost == 0 else np.inf


def _energy(weight: NDArray[np.float64], gram: NDArray[np.float64]) -> float:
    return max(float(np.vdot(weight @ gram, weight)), 0.0)
