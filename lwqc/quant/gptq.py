"""GPTQ: round column by column, later columns take up the error (2210.17323).

Codes are those of the paper's way by the inverse of H; they are found by the factor of H itself,
which costs half as much (GPTQ is Babai's nearest plane: 2507.18553). With MMᵀ = H, M upper
triangular, an error of a row of the weight counts |Mᵀd|² for differences d = w - q of its columns.
Columns of a weight W [N, K] are visited in order; where those before j are rounded and those behind
it are free, the best value of column j is w_j + Σ M_ij / M_jj · d_i over the columns i before it.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lwqc.errors import InputError
from lwqc.quant.column_grid import ColumnGrid
from lwqc.quant.formats import WeightFormat
from lwqc.quant.forward_substitution import forward_substitution
from lwqc.quant.gram_matrix import check_gram, importance, upper_factor
from lwqc.quant.grid import Encoded, joined
from lwqc.quant.range_search import encode

Order = Literal["none", "activation"]
Scales = Literal["frozen", "refit"]
_ROWS = 256  # of a factor that are divided at once
AT_ONCE = 1 << 24  # weights; of a larger matrix some rows at a time, as each takes 18 bytes


def gptq(
    weight: NDArray[np.floating],
    fmt: WeightFormat,
    gram: NDArray[np.float64],
    *,
    damp: float = 0.01,
    order: Order = "none",
    scales: Scales = "frozen",
) -> Encoded:
    """Quantize a weight [N, K] for inputs x with Gram matrix H = mean of x xᵀ [K, K].

    gram: H, or [groups, K, K] of equal parts of the rows that have inputs of their own.
    damp: ridge on H, relative to the mean of its diagonal.
    order: "activation" visits inputs by falling H_kk; codes stay where they are, so scales are
        those of the original weight ("static groups").
    scales: "frozen" searches them on the original weight; "refit" on the weight as it is when
        its block is entered. One scale per channel is always the original weight's. The search
        weighs inputs by H_kk.

    An input that never fires is rounded to nearest. Raises InputError as `encode` and `check_gram`
    do, and for "refit" in activation order, in which blocks are not entered one after the other.
    """
    if scales == "refit" and order == "activation":
        raise InputError("GPTQ: scales can only be re-fitted in the order 'none'")
    n, k = weight.shape
    grams = gram.reshape(-1, *gram.shape[-2:])
    for one in grams:
        check_gram(one, k)
    rows = n // len(grams)
    counts = np.stack([importance(one, damp) for one in grams])
    by_energy = np.argsort(-np.diagonal(grams, axis1=1, axis2=2), axis=1, kind="stable")
    visited = by_energy if order == "activation" else np.tile(np.arange(k), (len(grams), 1))
    couplings = [
        _coupling(one if order == "none" else one[np.ix_(v, v)], damp)
        for one, v in zip(grams, visited, strict=True)
    ]
    if len(grams) > 1:
        places = visited.repeat(rows, 0).T
        return _solved(weight, fmt, counts.repeat(rows, 0), np.stack(couplings), places, scales)
    some = max(AT_ONCE // k, 1)
    return joined(
        [
            _solved(weight[at : at + some], fmt, counts[0], couplings[0], visited[0], scales)
            for at in range(0, n, some)
        ]
    )


def _solved(
    weight: NDArray[np.floating],
    fmt: WeightFormat,
    counts: NDArray[np.float64],
    coupling: NDArray[np.float32],
    places: NDArray[np.intp],
    scales: Scales,
) -> Encoded:
    """Codes of some rows, which do not depend on the others.

    counts: of inputs, for all rows or each. places: of the columns in the order of the visit, [K],
    or [K, N] where rows have orders of their own.
    """
    grid = ColumnGrid(encode(weight, fmt, importance=counts))
    columns = places.tolist() if places.ndim == 1 else places

    def own(at: slice) -> NDArray[np.float32]:
        """Columns of the weight [some, N] in the order of the visit."""
        if places.ndim == 1:
            return np.ascontiguousarray(weight.T[places[at]], np.float32)
        return np.ascontiguousarray(np.take_along_axis(weight.T, places[at], 0), np.float32)

    pending = own(slice(None))

    def visit(i: int) -> NDArray[np.float32]:
        change: NDArray[np.float32] = grid.round(columns[i], pending[i]) - own(slice(i, i + 1))[0]
        return change

    def enter(start: int, stop: int) -> None:
        if start % grid.block == 0 and stop == min(start + grid.block, len(pending)):
            block = slice(start, stop)
            before = own(block)
            free = before + _freed(coupling[..., block, block], pending[block] - before)
            grid.fit(block, free, counts[..., block])

    at_blocks = {"enter": enter} if scales == "refit" and fmt.block else {}
    forward_substitution(pending, coupling, visit, **at_blocks)
    return grid.encoded()


def _freed(coupling: NDArray[np.float32], moved: NDArray[np.float32]) -> NDArray[np.float32]:
    """How far columns [block, N] move where all of them are free.

    moved: how far each one does where those before it in the block stay. coupling: of the block.
    """
    from scipy.linalg import solve_triangular

    each = coupling.reshape(-1, *coupling.shape[-2:])
    parts = np.split(moved, len(each), axis=1)
    found = [
        solve_triangular(c, part, trans="T", unit_diagonal=True, check_finite=False)
        for c, part in zip(each, parts, strict=True)
    ]
    return np.concatenate(found, axis=1)


def _coupling(gram: NDArray[np.float64], damp: float) -> NDArray[np.float32]:
    """M over the diagonal of its columns, of inputs in the order in which they are visited."""
    factor = upper_factor(gram, damp)
    diagonal = np.diagonal(factor)
    coupling = np.zeros(factor.shape, np.float32)
    for at in range(0, len(factor), _ROWS):
        coupling[at : at + _ROWS, at:] = factor[at : at + _ROWS, at:] / diagonal[at:]
    return coupling
