"""Coordinate descent on the codes and scales of a quantized weight, for the error at the output.

min tr(E H Eᵀ), E = W - Q. With all else fixed the best code of column j is the one nearest to
q_j + (E H)_j / H_jj, and the best scale of a block with centred codes d is its scale plus
(d · E H) / (d H d): each step is exact, so no step increases the error.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lwqc.quant.column_grid import ColumnGrid
from lwqc.quant.forward_substitution import forward_substitution
from lwqc.quant.gram_matrix import check_gram, damped
from lwqc.quant.grid import Encoded

Float = NDArray[np.float64]


def coordinate_descent(
    weight: NDArray[np.floating],
    start: Encoded,
    gram: Float,
    *,
    damp: float = 0.01,
    sweeps: int = 2,
    refit_scales: bool = True,
) -> Encoded:
    """Improve codes, and between sweeps scales, of an encoded weight [N, K].

    gram: H = mean of x xᵀ [K, K]; damp: ridge on it, relative to the mean of its diagonal. Zero
    points stay; without damping so do the codes of inputs that never fire. The error tr(E H Eᵀ)
    never grows, H being the damped one. Raises InputError as `check_gram` does.
    """
    check_gram(gram, start.k)
    gram = damped(gram, damp) if damp else gram
    original = np.asarray(weight, np.float64).T
    grid = ColumnGrid(start)
    for _ in range(sweeps):
        if refit_scales:
            _fit_scales(original, grid, gram)
        _fit_codes(original, grid, gram)
    if refit_scales and sweeps:
        _fit_scales(original, grid, gram)
    return grid.encoded()


def refit_scales(weight: NDArray[np.floating], start: Encoded, gram: Float) -> Encoded:
    """Best scales for given codes, block after block; arguments as of `coordinate_descent`."""
    check_gram(gram, start.k)
    grid = ColumnGrid(start)
    _fit_scales(np.asarray(weight, np.float64).T, grid, gram)
    return grid.encoded()


def _fit_codes(original: Float, grid: ColumnGrid, gram: Float) -> None:
    """One sweep over the columns. original: [K, N]."""
    values = grid.values()
    pending = gram @ (original - values)
    energy = np.diagonal(gram)

    def visit(j: int) -> Float:
        if energy[j] <= 0:
            return np.zeros(len(values[j]))
        best = grid.round(j, values[j] + pending[j] / energy[j])
        change: Float = best.astype(np.float64) - values[j]
        return change

    forward_substitution(pending, gram, visit)


def _fit_scales(original: Float, grid: ColumnGrid, gram: Float) -> None:
    """One sweep over the blocks. original: [K, N]."""
    error = original - grid.values()
    for i, span in enumerate(grid.spans()):
        codes = grid.centred(span).astype(np.float64)
        slope = np.einsum("ij,ij->j", codes, gram[span] @ error)
        curvature = np.einsum("ij,ij->j", codes, gram[span, span] @ codes)
        error[span] -= codes * grid.improve_scale(i, slope, curvature)
