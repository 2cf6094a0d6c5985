"""Coordinates of a residual stream: x becomes s · xQ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


class Basis(Protocol):
    """An orthogonal matrix Q [D, D] and a scale s: what is written into a stream becomes s · xQ.

    Layers that read the stream divide by the scale, so that it shows in norms alone.
    """

    @property
    def scale(self) -> float:
        """s, above 0."""
        ...

    def apply(self, values: NDArray[np.floating], axis: int = -1) -> Matrix:
        """values · Q along one axis of D, without the scale."""
        ...


@dataclass(frozen=True)
class Unchanged:
    """The coordinates as they are."""

    scale: float = 1.0

    def apply(self, values: NDArray[np.floating], axis: int = -1) -> Matrix:
        """The same values in float64."""
        return np.asarray(values, np.float64)


@dataclass(frozen=True, eq=False)
class Orthogonal:
    """The basis with the columns of a matrix [D, D], which must be orthogonal."""

    matrix: Matrix
    scale: float = 1.0

    def apply(self, values: NDArray[np.floating], axis: int = -1) -> Matrix:
        """values · Q along one axis."""
        moved = np.moveaxis(np.asarray(values, np.float64), axis, -1)
        return np.moveaxis(moved @ self.matrix, -1, axis)


@dataclass(frozen=True, eq=False)
class Projection:
    """The part of a stream in the span of the columns of a matrix [D, d], in the same coordinates.

    Norms by the root mean square see what they see of those d coordinates times √(d / D).
    """

    columns: Matrix
    scale: float = 1.0

    def apply(self, values: NDArray[np.floating], axis: int = -1) -> Matrix:
        """values · QQᵀ along one axis."""
        moved = np.moveaxis(np.asarray(values, np.float64), axis, -1)
        return np.moveaxis(moved @ self.columns @ self.columns.T, -1, axis)


def principal(gram: NDArray[np.floating]) -> Matrix:
    """Eigenvectors [D, D] of a Gram matrix [D, D] as columns, the largest eigenvalue first.

    Signs are fixed: the largest entry of a column is positive. The source damps the matrix first,
    which changes no eigenvector. Source: SliceGPT (2401.15024), section 3.3.
    """
    symmetric = np.asarray(gram, np.float64)
    symmetric = (symmetric + symmetric.T) / 2
    columns: Matrix = np.linalg.eigh(symmetric)[1][:, ::-1]
    largest = np.abs(columns).argmax(axis=0)
    return columns * np.where(columns[largest, np.arange(len(columns))] < 0, -1.0, 1.0)
