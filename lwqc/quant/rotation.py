"""Randomised Hadamard rotations: they spread a few large channels evenly over all."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
_LARGEST = 64  # two products with 64 x 64 cost a thirtieth of one with 4096 x 4096


@dataclass(frozen=True)
class Rotation:
    """An orthogonal matrix Q [size, size], size at least 1; the same for the same seed.

    Q = diag(random signs) · (H ⊗ O) with size = 2^k · m, m odd: H the Sylvester-Hadamard matrix of
    2^k, scaled to be orthogonal, and O a random orthogonal m x m matrix (QuaRot, 2404.00456; the
    random O stands in for the Hadamard matrices of other sizes).
    """

    size: int
    seed: int

    @property
    def scale(self) -> float:
        """Lengths stay."""
        return 1.0

    @cached_property
    def _signs(self) -> Matrix:
        return np.random.default_rng(self.seed).choice([-1.0, 1.0], self.size)

    @cached_property
    def _parts(self) -> list[Matrix]:
        """Orthogonal matrices whose Kronecker product is H ⊗ O."""
        from scipy.linalg import hadamard as sylvester

        odd, parts = self.size, list[Matrix]()
        while odd % 2 == 0:
            part = 2
            while odd % (2 * part) == 0 and part < _LARGEST:
                part *= 2
            parts.append(sylvester(part) / np.sqrt(part))
            odd //= part
        if odd > 1:
            rng = np.random.default_rng([self.seed, odd])
            q, r = np.linalg.qr(rng.standard_normal((odd, odd)))
            parts.append(q * np.sign(np.diagonal(r)))  # uniform over all orthogonal matrices
        return parts

    @property
    def matrix(self) -> Matrix:
        """Q [size, size]."""
        mixed: Matrix = np.ones((1, 1))
        for part in self._parts:
            mixed = np.kron(mixed, part).astype(np.float64, copy=False)
        return self._signs[:, None] * mixed

    def apply(self, values: NDArray[np.floating], axis: int = -1) -> Matrix:
        """values · Q along one axis, without forming Q: O(n (64 + m)) per vector of n."""
        moved = np.moveaxis(np.asarray(values, np.float64), axis, -1)
        turned = (moved * self._signs).reshape(-1, *(len(p) for p in self._parts))
        for part in self._parts:  # each takes the first of the parts' axes to the end
            turned = np.tensordot(turned, part, axes=(1, 0))
        return np.moveaxis(turned.reshape(moved.shape), -1, axis)


def hadamard(n: int, seed: int) -> Matrix:
    """Randomised orthogonal matrix [n, n], float64; see `Rotation`."""
    return Rotation(n, seed).matrix
