"""Weighted k-means of vectors: the codebook of a weight before anything else is known of it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]
Weights = NDArray[np.float64]

_SAMPLE = 8192  # vectors that are looked at, or more for many centroids
_EACH = 64  # of them for each centroid
_ROUNDS = 20
_CHUNK = 1 << 20  # distances at once


def k_means(vectors: Vectors, weights: Weights, count: int) -> Vectors:
    """Centroids [count, d] of vectors [n, d] whose squared errors count by weights [n].

    Starts from vectors that are far from each other, by chance of a fixed seed. The same input
    gives the same result. Centroids that nothing is near to stay where they are.
    """
    most = max(_SAMPLE, _EACH * count)
    if len(vectors) > most:  # every so many: the order of outputs and inputs means nothing
        chosen = np.linspace(0, len(vectors) - 1, most).astype(np.int64)
        vectors, weights = vectors[chosen], weights[chosen]
    centroids = _far_apart(vectors, weights, count)
    nearest = None
    for _ in range(_ROUNDS):
        before, nearest = nearest, nearest_centroid(vectors, centroids)
        if before is not None and np.array_equal(before, nearest):  # and so do all rounds to come
            break
        mass = np.bincount(nearest, weights, count)
        for axis in range(vectors.shape[1]):
            sums = np.bincount(nearest, weights * vectors[:, axis], count)
            np.divide(sums, mass, out=centroids[:, axis], where=mass > 0, casting="same_kind")
    return centroids


def nearest_centroid(vectors: Vectors, centroids: Vectors) -> NDArray[np.intp]:
    """The number of the centroid nearest to each vector [n, d]; the first of equal ones."""
    half = np.float32(0.5) * (centroids**2).sum(1)
    turned = np.ascontiguousarray(centroids.T)
    step = max(_CHUNK // len(centroids), 1)
    found = np.empty(len(vectors), np.intp)
    for start in range(0, len(vectors), step):
        score = vectors[start : start + step] @ turned
        score -= half
        found[start : start + step] = score.argmax(1)
    return found


def _far_apart(vectors: Vectors, weights: Weights, count: int) -> Vectors:
    """Vectors drawn by their weighted squared distance to those drawn before (k-means++)."""
    draw = np.random.default_rng(0)
    centroids = np.zeros((count, vectors.shape[1]), np.float32)  # the first is zero
    distance = (vectors.astype(np.float64) ** 2).sum(1) * weights
    for i in range(1, count):
        total = np.cumsum(distance)
        if not total[-1] > 0:
            break
        index = int(np.searchsorted(total, draw.random() * total[-1], side="right"))
        centroids[i] = vectors[min(index, len(vectors) - 1)]
        own = ((vectors - centroids[i]).astype(np.float64) ** 2).sum(1) * weights
        np.minimum(distance, own, out=distance)
    return centroids
