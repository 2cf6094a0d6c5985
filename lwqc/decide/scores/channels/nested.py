"""A layer with fewer of its input features, for all widths from one factorisation."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from lwqc.decide.scores.channels.final_error import DAMP
from lwqc.graph.linear_operand import Matrix


class NestedRefit:
    """What is best left of a matrix when features go in a fixed order.

    With the features sorted so that the last go first and the Gram as L Lᵀ, the least squares
    solution on the first k is (W L)[:, :k] L[:k, :k]⁻¹; leading blocks of L and of L⁻¹ are those
    of the whole, so a width costs one product.
    """

    def __init__(self, weight: Matrix, gram: NDArray[np.float64], order: NDArray[np.intp]) -> None:
        """weight [out, features]; gram [groups, features, features] of its input; order: features,
        the last to go first.
        """
        self._weight, self._gram, self._order = weight, gram, order

    @cached_property
    def _factors(self) -> list[tuple[Matrix, Matrix]]:
        """W L and L⁻¹ of each group."""
        from scipy.linalg import cholesky, solve_triangular

        found = []
        parts = self._weight.reshape(len(self._gram), -1, self._weight.shape[1])
        for part, gram in zip(parts, self._gram, strict=True):
            damped = gram[np.ix_(self._order, self._order)].astype(np.float64)
            damped.flat[:: len(damped) + 1] += max(DAMP * np.trace(gram) / len(gram), 1e-12)
            lower = cholesky(damped, lower=True, overwrite_a=True)
            inverse = solve_triangular(lower, np.eye(len(lower)), lower=True)
            found.append((part[:, self._order] @ lower, inverse))
        return found

    def __call__(self, count: int) -> Matrix:
        """The matrix [out, count] on the features that are left, in their own order."""
        kept = [product[:, :count] @ inverse[:count, :count] for product, inverse in self._factors]
        position = np.argsort(self._order[:count])
        return np.concatenate(kept)[:, position]

    @property
    def nbytes(self) -> int:
        """Memory that the factors take, in bytes."""
        return sum(product.nbytes + inverse.nbytes for product, inverse in self._factors)
