"""What a low-bit weight loses, kept in float beside it: outlier columns and a low-rank correction.

y = x · Qᵀ + side(x). Columns follow SpQR (2306.03078) in its column form, ranks LoRC (2307.09782).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lwqc.quant.formats import WeightFormat
from lwqc.quant.gram_matrix import damped
from lwqc.quant.grid import Encoded
from lwqc.quant.low_rank import low_rank
from lwqc.quant.methods import DATA_METHODS, Method, encode_by
from lwqc.quant.outlier_columns import outlier_columns
from lwqc.quant.range_search import encode

Float = NDArray[np.float32]
Gram = NDArray[np.float64]
_DAMP = 0.01  # that of GPTQ
_HALF_BYTES, _INDEX_BYTES = 2, 4


@dataclass(frozen=True)
class Side:
    """side(x) = [x[columns], x · down] · up.

    columns: int32 [c], rising; down: float32 [K, r]; up: float32 [c + r, N].
    """

    columns: NDArray[np.int32]
    down: Float
    up: Float

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self.columns.nbytes + self.down.nbytes + self.up.nbytes

    def matrix(self) -> Float:
        """The weight [N, K] that the branch stands for."""
        count = len(self.columns)
        dense = self.down @ self.up[count:]
        dense[self.columns] += self.up[:count]
        return np.ascontiguousarray(dense.T)


def side_bytes(n: int, k: int, rank: int, columns: int) -> int:
    """Bytes that the branch of a weight [N, K] takes in a file, in float16."""
    return columns * (_HALF_BYTES * n + _INDEX_BYTES) + _HALF_BYTES * rank * (n + k)


def encode_with_side(
    method: Method,
    weight: NDArray[np.floating],
    fmt: WeightFormat,
    gram: Gram | None,
    *,
    rank: int = 0,
    columns: int = 0,
    search: bool = True,
) -> tuple[Encoded, Side]:
    """Quantize a weight [N, K] and keep `columns` of its columns and a rank of its error in float.

    gram: mean of x xᵀ [K, K]; only `DATA_METHODS` look at it, as in `encode_by`. With it the float
    columns are not copies: they take up what they can of the other columns' rounding error, and
    codes and low rank are chosen for that (their Gram matrix is the Schur complement of the
    columns'). Codes of the float columns mean 0. Raises InputError as `encode_by`, `low_rank` and
    `outlier_columns` do.
    """
    used = gram if method in DATA_METHODS else None
    chosen, rest = np.zeros(0, np.intp), weight
    if columns:
        rounded = encode(weight, fmt, search=search).decode()
        chosen, rest = outlier_columns(weight, rounded, used, columns)
    answer, used_rest = None, used
    if used is not None and columns:
        answer, used_rest = _answer(used, chosen)
    stacked = None if used_rest is None else used_rest[None]
    encoded = encode_by(method, rest, fmt, stacked, search=search)
    error = rest - encoded.decode()
    n, k = weight.shape
    left, right = np.zeros((n, 0)), np.zeros((0, k))
    if rank:
        left, right = _balanced(*low_rank(error, rank, used_rest))
    kept = np.asarray(weight[:, chosen], np.float64)
    if answer is not None:
        kept = kept + (error - left @ right) @ answer
    up = np.concatenate([kept, left], axis=1).T
    return encoded, Side(
        chosen.astype(np.int32),
        np.ascontiguousarray(right.T, np.float32),
        np.ascontiguousarray(up, np.float32),
    )


def _answer(gram: Gram, columns: NDArray[np.intp]) -> tuple[Gram, Gram]:
    """How float columns make up for errors of the others, and the Gram matrix that is left.

    Returns R [K, c], with which an error E [N, K] is best met by adding E R to the columns, and
    H - R H[columns], which is zero in them.
    """
    from scipy.linalg import solve

    among = damped(gram, _DAMP)[np.ix_(columns, columns)]
    answer: Gram = solve(among, gram[columns], assume_a="pos").T
    left = gram - answer @ gram[columns]
    left[columns] = left[:, columns] = 0
    return answer, (left + left.T) / 2


def _balanced(left: Gram, right: Gram) -> tuple[Gram, Gram]:
    """The factors [N, r], [r, K] scaled by powers of two, so that float16 fits both equally."""
    high, low = np.abs(right).max(axis=1), np.abs(left).max(axis=0)
    ratio = np.divide(high, low, out=np.ones_like(high), where=(high > 0) & (low > 0))
    scale = np.exp2(np.round(np.log2(ratio) / 2))
    return left * scale, right / scale[:, None]
