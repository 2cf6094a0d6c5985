"""Weights as indices into codebooks that are fitted to them (2402.15319, 2409.17066).

A vector is a few consecutive outputs of one input, as in VPTQ: what its error costs at the output
is then the same for all of its numbers, and the nearest centroid is the best one. Later inputs take
up the error of earlier ones as in GPTQ. Indices and centroids then take turns: with all else fixed
the best index of a vector is that of the centroid nearest to w_j + (E H)_j / H_jj, and the best
centroids solve a system of least squares. Bands of outputs have codebooks of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lwqc.errors import InputError
from lwqc.quant.formats import WeightFormat
from lwqc.quant.forward_substitution import forward_substitution
from lwqc.quant.gram_matrix import check_gram, damped, importance, inverse_factor
from lwqc.quant.grid import Encoded
from lwqc.quant.k_means import k_means, nearest_centroid

Weight = NDArray[np.floating]
Float = NDArray[np.float64]
Indices = NDArray[np.intp]
Vectors = NDArray[np.float32]

_DAMP = 0.01
_RIDGE = 1e-6  # towards the centroids as they were, relative to the mean mass of one
CODEBOOK_METHODS = ("rtn", "gptq", "gptq-order", "gptq-refit", "descent")
_SWEEPS = {"gptq-refit": 0, "descent": 3}  # over indices, with centroids refitted in between


@dataclass(eq=False)
class _Band:
    """Outputs that share a codebook: their weight [K, n], indices [K, n / d], centroids."""

    weight: Vectors
    indices: Indices
    centroids: Vectors

    def values(self, columns: slice) -> Vectors:
        """What the indices of some vectors stand for: [K, d times as many outputs]."""
        return self.centroids[self.indices[:, columns]].reshape(len(self.indices), -1)

    def round(self, row: int, columns: slice, target: NDArray[np.floating]) -> Vectors:
        """Set the indices of some vectors of an input nearest to the target; their values."""
        wanted = target.astype(np.float32).reshape(-1, self.centroids.shape[1])
        found = nearest_centroid(wanted, self.centroids)
        self.indices[row, columns] = found
        return self.centroids[found].ravel()


def encode_in_codebook(
    weight: Weight, fmt: WeightFormat, gram: Float | None, method: str
) -> Encoded:
    """Indices and codebooks of a weight [N, K].

    gram: mean of x xᵀ [groups, K, K], see `methods.encode_by`; None: k-means of the weight alone.
    method: `rtn` takes k-means weighed by the energy of inputs, `gptq` and `gptq-order` spread the
    error, `gptq-refit` fits the centroids again in the end, `descent` improves both in turns.

    Raises InputError for other methods, numbers that float16 does not hold, vectors of outputs that
    have different inputs, and as `check_gram`.
    """
    if method not in CODEBOOK_METHODS:
        raise InputError(not_for_codebooks(method))
    n, k = weight.shape
    if gram is not None and len(gram) > 1 and n // len(gram) % fmt.dim:
        raise InputError(f"{fmt}: {n // len(gram)} outputs have the same inputs")
    limit = float(np.finfo(np.float16).max)
    if not np.abs(weight).max(initial=0) <= limit:
        raise InputError("weight holds numbers that float16 has not")
    grams = None if gram is None else list(gram)
    for matrix in grams or ():
        check_gram(matrix, k)
    count, rest = fmt.codebooks(n, k), -n % fmt.dim
    padded = np.concatenate([weight, np.zeros((rest, k), weight.dtype)]) if rest else weight
    rows = len(padded) // count
    bands = [
        _fitted(padded[i * rows : (i + 1) * rows], fmt, method, own)
        for i, own in enumerate(_grams_of_bands(len(padded), count, grams))
    ]
    return Encoded(
        fmt,
        np.concatenate([b.indices for b in bands], axis=1).astype(np.uint8),
        np.ones((n, 1), np.float32),
        np.zeros((n, 1), np.uint8),
        k,
        np.stack([b.centroids for b in bands]),
    )


def not_for_codebooks(method: str) -> str:
    """The reason for which a method fits no codebooks."""
    *most, last = CODEBOOK_METHODS
    return f"codebooks are fitted by {', '.join(most)} or {last}, not by {method}"


Part = tuple[slice, Float]  # outputs of a band, and the Gram matrix of their inputs


def _grams_of_bands(n: int, count: int, grams: list[Float] | None) -> Iterator[list[Part]]:
    """For each band its outputs that have the same inputs; nothing without data."""
    for band in range(count):
        start, stop = band * n // count, (band + 1) * n // count
        parts = []
        for group, gram in enumerate(grams or ()):
            rows = n // len(grams or ())
            first, last = max(start, group * rows), min(stop, (group + 1) * rows)
            if first < last:
                parts.append((slice(first - start, last - start), gram))
        yield parts


def _fitted(weight: Weight, fmt: WeightFormat, method: str, parts: list[Part]) -> _Band:
    turned = np.ascontiguousarray(weight.T, np.float32)
    k, n = turned.shape
    counts = np.ones((k, n // fmt.dim))
    for rows, gram in parts:
        counts[:, _vectors(rows, fmt.dim)] = importance(gram, _DAMP)[:, None]
    vectors = turned.reshape(-1, fmt.dim)
    centroids = _stored(k_means(vectors, counts.ravel(), 2**fmt.bits))
    band = _Band(turned, nearest_centroid(vectors, centroids).reshape(k, -1), centroids)
    if method == "rtn" or not parts:
        return band
    for rows, gram in parts:
        _spread(band, rows, gram, by_energy=method in ("gptq-order", "descent"))
    if method in _SWEEPS:
        within = [(rows, damped(gram, _DAMP)) for rows, gram in parts]
        _fit_centroids(band, within)
        for _ in range(_SWEEPS[method]):
            for rows, gram in within:
                _fit_indices(band, rows, gram)
            _fit_centroids(band, within)
    return band


def _vectors(rows: slice, dim: int) -> slice:
    return slice(rows.start // dim, rows.stop // dim)


def _stored(centroids: NDArray[np.floating]) -> Vectors:
    """Centroids as float16 holds them."""
    limit = float(np.finfo(np.float16).max)
    halves: Vectors = np.clip(centroids, -limit, limit).astype(np.float16).astype(np.float32)
    return halves


def _spread(band: _Band, rows: slice, gram: Float, *, by_energy: bool) -> None:
    """Indices input by input, the error of each taken up by those that come later."""
    order = np.argsort(-np.diagonal(gram), kind="stable") if by_energy else np.arange(len(gram))
    factor = inverse_factor(gram[np.ix_(order, order)], _DAMP)
    coupling = (factor / np.diagonal(factor)[:, None]).astype(np.float32)
    pending = np.ascontiguousarray(band.weight[order, rows])
    columns = _vectors(rows, band.centroids.shape[1])

    def visit(i: int) -> Vectors:
        error: Vectors = pending[i] - band.round(int(order[i]), columns, pending[i])
        return error

    forward_substitution(pending, coupling, visit)


def _fit_indices(band: _Band, rows: slice, gram: Float) -> None:
    """One sweep over the inputs, each with the best indices for all others as they are."""
    columns = _vectors(rows, band.centroids.shape[1])
    values = band.values(columns).astype(np.float64)
    pending = gram @ (band.weight[:, rows] - values)
    energy = np.diagonal(gram)

    def visit(j: int) -> Float:
        if energy[j] <= 0:
            return np.zeros(values.shape[1])
        best = band.round(j, columns, values[j] + pending[j] / energy[j])
        change: Float = best - values[j]
        return change

    forward_substitution(pending, gram, visit)


def _fit_centroids(band: _Band, parts: list[Part]) -> None:
    """The centroids of least error at the output for the indices as they are.

    The numbers of a vector belong to different outputs, so that each has its own system; all have
    the same matrix, which is the Gram matrix with inputs of one index added up.
    """
    count, dim = band.centroids.shape
    matrix, right = np.zeros((count, count)), np.zeros((count, dim))
    for rows, gram in parts:
        wanted = gram @ band.weight[:, rows].astype(np.float64)
        for vector in range(rows.start // dim, rows.stop // dim):
            order = np.argsort(band.indices[:, vector], kind="stable")
            sorted_indices = band.indices[order, vector]
            starts = np.flatnonzero(np.r_[True, sorted_indices[1:] != sorted_indices[:-1]])
            used = sorted_indices[starts]
            added = np.add.reduceat(gram[order], starts, axis=0)[:, order]
            matrix[np.ix_(used, used)] += np.add.reduceat(added, starts, axis=1)
            own = wanted[order, vector * dim - rows.start : (vector + 1) * dim - rows.start]
            right[used] += np.add.reduceat(own, starts, axis=0)
    ridge = _RIDGE * max(np.trace(matrix) / count, np.finfo(np.float64).tiny)
    matrix.flat[:: count + 1] += ridge
    right += ridge * band.centroids
    band.centroids = _stored(np.linalg.solve(matrix, right))
