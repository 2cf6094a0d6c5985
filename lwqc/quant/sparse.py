"""2:4 sparsity: of every four consecutive inputs of an output, two weights are zero."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lwqc.quant.forward_substitution import forward_substitution
from lwqc.quant.gram_matrix import check_gram, inverse_factor

Float = NDArray[np.float32]
Gram = NDArray[np.float64]
Mask = NDArray[np.bool_]
_CYCLES = 50
_DAMP = 0.01


def magnitude_mask(score: NDArray[np.floating]) -> Mask:
    """The two entries to remove of every four consecutive ones with the lowest score [N, K]."""
    groups = score.reshape(len(score), -1, 4)
    ranks = groups.argsort(axis=-1, kind="stable").argsort(axis=-1, kind="stable")
    return (ranks < 2).reshape(score.shape)


def by_magnitude(weight: Float) -> Float:
    """The weight [N, K] without the two smallest of every four; K is a multiple of 4."""
    return np.where(magnitude_mask(np.abs(weight)), np.float32(0), weight)


def by_sparsegpt(weight: Float, gram: Gram) -> Float:
    """The same by error at the output, later inputs taking it up (SparseGPT, 2301.00774).

    gram: mean of x xᵀ [K, K]. With UᵀU = H⁻¹ the score is w²/U_ii², looked at when a group of four
    is reached; removed weights change the later ones as in GPTQ.
    """
    check_gram(gram, weight.shape[1])
    factor = inverse_factor(gram, _DAMP)
    diagonal = np.diagonal(factor)
    coupling = (factor / diagonal[:, None]).astype(np.float32)
    pending = np.ascontiguousarray(weight.T, np.float32)
    removed = np.zeros(pending.shape, bool)

    def enter(start: int, stop: int) -> None:
        if stop - start == 4:
            score = (pending[start:stop] / diagonal[start:stop, None]) ** 2
            removed[start:stop] = magnitude_mask(score.T).T

    def visit(i: int) -> Float:
        error: Float = np.where(removed[i], pending[i], np.float32(0))
        return error

    forward_substitution(pending, coupling, visit, enter)
    return np.ascontiguousarray(np.where(removed, np.float32(0), pending).T)


def exchanged(weight: Float, sparse: Float, gram: Gram) -> Float:
    """The weight under a better mask: zeros change places within their groups of four.

    As in DSnoT (2310.08915), one exchange per output and cycle, at most 50 cycles; chosen here by
    the exact error at the output, d H dᵀ with d what is missing, rather than by mean activations.
    """
    removed = sparse == 0
    n, k = weight.shape
    missing = np.where(removed, weight, 0).astype(np.float64)
    pull = missing @ gram
    energy = np.diagonal(gram)
    rows, groups = np.arange(n), np.arange(k).reshape(-1, 4)
    for _ in range(_CYCLES):
        best = np.full(n, -1e-12)
        give, take = np.zeros(n, int), np.zeros(n, int)
        for a in range(4):
            for b in range(4):
                p, q = groups[:, a], groups[:, b]  # p comes back, q goes
                allowed = removed[:, p] & ~removed[:, q]
                wp, wq = weight[:, p].astype(np.float64), weight[:, q].astype(np.float64)
                change = 2 * (wq * pull[:, q] - wp * pull[:, p])
                change += wq**2 * energy[q] + wp**2 * energy[p] - 2 * wp * wq * gram[p, q]
                change = np.where(allowed, change, 0)
                at = change.argmin(axis=1)
                better = change[rows, at] < best
                best = np.where(better, change[rows, at], best)
                give, take = np.where(better, p[at], give), np.where(better, q[at], take)
        moved = np.flatnonzero(best < -1e-12)
        if not len(moved):
            break
        p, q = give[moved], take[moved]
        removed[moved, p], removed[moved, q] = False, True
        pull[moved] += weight[moved, q, None] * gram[q] - weight[moved, p, None] * gram[p]
    return np.where(removed, np.float32(0), weight)


def is_two_of_four(weight: NDArray[np.floating]) -> bool:
    """Whether every four consecutive inputs [N, K] hold two zeros."""
    groups = weight.reshape(len(weight), -1, 4)
    return bool(((groups == 0).sum(axis=-1) >= 2).all())
