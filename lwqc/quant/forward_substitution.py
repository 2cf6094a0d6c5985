"""Visit rows in order, each after the consequences of all rows before it: blocked and exact."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Real = TypeVar("Real", np.float32, np.float64)


def forward_substitution(
    pending: NDArray[Real],
    coupling: NDArray[Real],
    visit: Callable[[int], NDArray[Real]],
    enter: Callable[[int, int], None] = lambda start, stop: None,
) -> None:
    """Call visit(i) for i = 0, 1, ... and subtract coupling[i, j] times its result from row j > i.

    pending: [K, N], changed in place; coupling: [K, K], or [groups, K, K] of equal parts of the N,
    read above the diagonal; visit(i) reads pending[i] and returns [N]. enter(start, stop) is called
    before the first row of every span [start, stop) whose length is a power of two that divides
    start (or that K cuts short).

    Halves recursively, so that most of the work is products of matrices of the size of the halves,
    whatever the cache; the result is that of the plain double loop.
    """
    if len(pending):
        _solve(pending, coupling, np.empty_like(pending), visit, enter, 0, len(pending))


def _solve(
    pending: NDArray[Real],
    coupling: NDArray[Real],
    changes: NDArray[Real],
    visit: Callable[[int], NDArray[Real]],
    enter: Callable[[int, int], None],
    start: int,
    stop: int,
) -> None:
    """Rows [start, stop). No closure that calls itself: it would outlive the call with all this."""
    enter(start, stop)
    if stop - start == 1:
        changes[start] = visit(start)
        return
    middle = start + (1 << (stop - start - 1).bit_length() - 1)
    _solve(pending, coupling, changes, visit, enter, start, middle)
    pending[middle:stop] -= _carried(
        coupling[..., start:middle, middle:stop], changes[start:middle]
    )
    _solve(pending, coupling, changes, visit, enter, middle, stop)


def _carried(coupling: NDArray[Real], changes: NDArray[Real]) -> NDArray[Real]:
    """What changes [i, N] of earlier rows come to in later ones [j, N]."""
    if coupling.ndim == 2:
        return coupling.T @ changes
    parts = changes.reshape(len(changes), len(coupling), -1).transpose(1, 0, 2)
    carried = coupling.transpose(0, 2, 1) @ parts
    return carried.transpose(1, 0, 2).reshape(coupling.shape[2], -1)
