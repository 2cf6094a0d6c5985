"""GPFQ: greedy path following, each code chosen for the error made so far (2201.11113).

With inputs x of the float model and y of the quantized one, column t gets the code nearest to
<u, y_t> / <y_t, y_t>, where u = Σ_{s<=t} w_s x_s - Σ_{s<t} q_s y_s. All products are entries of
Gram matrices, so no input needs to be kept.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lwqc.quant.column_grid import ColumnGrid
from lwqc.quant.formats import WeightFormat
from lwqc.quant.forward_substitution import forward_substitution
from lwqc.quant.gram_matrix import check_gram, damped, importance
from lwqc.quant.grid import Encoded
from lwqc.quant.range_search import encode


def gpfq(
    weight: NDArray[np.floating],
    fmt: WeightFormat,
    gram: NDArray[np.float64],
    cross: NDArray[np.float64] | None = None,
    *,
    damp: float = 0.01,
) -> Encoded:
    """Quantize a weight [N, K] at the scales of its range search, inputs weighed by their energy.

    gram: mean of y yᵀ [K, K], y the inputs that the quantized layer will see; cross: mean of x yᵀ
    [K, K], x the inputs of the float layer (None: the same inputs). damp: share of the
    mean energy that every input gets on top, so that errors are not chased through inputs that
    hardly fire. Raises InputError as `encode` and `check_gram` do.
    """
    k = weight.shape[1]
    check_gram(gram, k)
    wanted = gram if cross is None else cross
    check_gram(wanted, k)
    grid = ColumnGrid(encode(weight, fmt, importance=importance(gram, damp)))
    ridge = damped(gram, damp) - gram
    gram, wanted = gram + ridge, wanted + ridge
    original = np.asarray(weight, np.float64).T
    energy = np.diagonal(gram)
    pending = np.triu(wanted).T @ original  # row t: Σ_{s<=t} w_s <x_s, y_t>

    def visit(t: int) -> NDArray[np.float64]:
        target = pending[t] / energy[t] if energy[t] > 0 else original[t]
        return grid.round(t, target).astype(np.float64)

    forward_substitution(pending, gram, visit)
    return grid.encoded()
