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

    pending: [K, N], changed in place; coupling: [K, K], read above the diagonal; visit(i) reads
    pending[i] and returns [N]. enter(start, stop) is called before the first row of every span
    [start, stop) whose length is a power of two that divides start (or that K cuts short).

    Halves recursively, so that most of the work is products of matrices of the size of the halves,
    whatever the cache; the result is that of the plain double loop.
    """
    changes = np.empty_like(pending)

    def solve(start: int, stop: int) -> None:
        enter(start, stop)
        if stop - start == 1:
            changes[start] = visit(start)
            return
        middle = start + (1 << (stop - start - 1).bit_length() - 1)
        solve(start, middle)
        pending[middle:stop] -= coupling[start:middle, middle:stop].T @ changes[start:middle]
        solve(middle, stop)

    if len(pending):
        solve(0, len(pending))
