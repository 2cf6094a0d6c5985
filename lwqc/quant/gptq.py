"""GPTQ: round column by column, later columns take up the error (2210.17323).

With UᵀU = H⁻¹, U upper triangular, the columns of a weight W [N, K] are visited in order; the error
e = w_i - q_i of column i changes every later column j by -e U_ij / U_ii: the least-squares answer
of the columns not yet rounded. U is read *above* its diagonal; below it, it is zero.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lwqc.errors import InputError
from lwqc.quant.column_grid import ColumnGrid
from lwqc.quant.formats import WeightFormat
from lwqc.quant.forward_substitution import forward_substitution
from lwqc.quant.gram_matrix import check_gram, importance, inverse_factor
from lwqc.quant.grid import Encoded
from lwqc.quant.range_search import encode

Order = Literal["none", "activation"]
Scales = Literal["frozen", "refit"]


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
    k = weight.shape[1]
    check_gram(gram, k)
    counts = importance(gram, damp)
    grid = ColumnGrid(encode(weight, fmt, importance=counts))
    by_energy = np.argsort(-np.diagonal(gram), kind="stable")
    visited = by_energy if order == "activation" else np.arange(k)
    seen = gram if order == "none" else gram[np.ix_(visited, visited)]
    factor = inverse_factor(seen, damp)
    coupling = (factor / np.diagonal(factor)[:, None]).astype(np.float32)
    pending = np.ascontiguousarray(weight.T[visited], np.float32)

    def visit(i: int) -> NDArray[np.float32]:
        error: NDArray[np.float32] = pending[i] - grid.round(int(visited[i]), pending[i])
        return error

    def enter(start: int, stop: int) -> None:
        if start % grid.block == 0 and stop == min(start + grid.block, k):
            grid.fit(slice(start, stop), pending[start:stop], counts[start:stop])

    if scales == "refit" and fmt.block:
        forward_substitution(pending, coupling, visit, enter)
    else:
        forward_substitution(pending, coupling, visit)
    return grid.encoded()
