"""Input columns worth keeping in float: the column form of SpQR (2306.03078).

The layer becomes x · restᵀ in few bits plus x[columns] · W[:, columns]ᵀ in float: two operators
that every runtime has, where single outlier weights have none.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lwqc.errors import InputError
from lwqc.quant.gram_matrix import check_gram


def outlier_columns(
    weight: NDArray[np.floating],
    quantized: NDArray[np.floating],
    gram: NDArray[np.float64] | None,
    count: int,
) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """The `count` columns of a weight [N, K] whose rounding costs most, and the weight without.

    quantized: [N, K], the weight rounded to nearest; gram: H = mean of x xᵀ [K, K], None stands for
    the identity. The cost of column j is H_jj |w_j - q_j|². The exact saving, which counts products
    with other columns, is no better for that, and misleads where a method has made errors cancel.

    Returns the columns in rising order [count] and a float32 weight [N, K] with zeros in them,
    which is to be quantized anew: its blocks have smaller ranges. Raises InputError unless
    0 <= count <= K, and as `check_gram` does.
    """
    k = weight.shape[1]
    if gram is not None:
        check_gram(gram, k)
    if not 0 <= count <= k:
        raise InputError(f"outlier columns: expected a count in 0..{k}, found {count}")
    error = np.asarray(weight, np.float64) - quantized
    cost = np.einsum("ij,ij->j", error, error)
    if gram is not None:
        cost = cost * np.diagonal(gram)
    columns = np.sort(np.argsort(-cost, kind="stable")[:count])
    rest = np.array(weight, np.float32)
    rest[:, columns] = 0
    return columns, rest
