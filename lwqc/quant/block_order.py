"""An order of input channels in which blocks hold values of similar size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from lwqc.errors import InputError
from lwqc.quant.formats import WeightFormat
from lwqc.quant.range_search import encode

Order = NDArray[np.intp]


def block_order(
    weights: Sequence[NDArray[np.floating]],
    fmt: WeightFormat,
    importance: Sequence[NDArray[np.floating]] | None = None,
) -> Order:
    """Order of the K inputs that several weights [N_i, K] read in common: old index at each place.

    A block's scale follows its largest value: columns of similar size are put together, or, which
    serves 2 bits better, the largest ones dealt out to different blocks. Size is the largest value
    or the mean square, times what errors count or not. The order with the least error of rounding
    to nearest (with range search), summed over all weights, is taken; the old one if none is
    better. Costs nine encodings of every weight at most.

    importance: [K] per weight, what the squared error of each input counts there (the mean square
        of the layer's inputs).

    Raises InputError when the weights read different numbers of inputs.
    """
    if not weights or len({w.shape[1] for w in weights}) > 1:
        raise InputError("block order: the weights must read the same inputs")
    identity = np.arange(weights[0].shape[1])
    if fmt.block is None or fmt.block >= len(identity):
        return identity
    counts = importance if importance is not None else [np.ones(len(identity))] * len(weights)
    best, least = identity, rounding_error(weights, fmt, counts, identity)
    for order in _candidates(weights, counts, fmt.blocks(len(identity))):
        error = rounding_error(weights, fmt, counts, order)
        if error < least:
            best, least = order, error
    return best


def rounding_error(
    weights: Sequence[NDArray[np.floating]],
    fmt: WeightFormat,
    importance: Sequence[NDArray[np.floating]],
    order: Order,
) -> float:
    """Sum over weights of Σ importance · (W - Q)², the inputs in the given order."""
    total = 0.0
    for weight, counts in zip(weights, importance, strict=True):
        moved = np.asarray(weight)[:, order]
        lost = moved - encode(moved, fmt, importance=counts[order]).decode()
        total += float(np.square(lost, dtype=np.float64).sum(axis=0) @ counts[order])
    return total


def _candidates(
    weights: Sequence[NDArray[np.floating]],
    importance: Sequence[NDArray[np.floating]],
    blocks: int,
) -> Iterator[Order]:
    ones = [np.ones(w.shape[1]) for w in weights]
    weighings = [ones] if all((c == c[0]).all() for c in importance) else [ones, importance]
    largest = [np.square(np.abs(w).max(axis=0), dtype=np.float64) for w in weights]
    mean = [np.square(w, dtype=np.float64).mean(axis=0) for w in weights]
    for sizes in (largest, mean):
        for counts in weighings:
            key = sum(s * c for s, c in zip(sizes, counts, strict=True))
            ranked = np.argsort(np.negative(key), kind="stable")
            yield ranked
            yield ranked[np.argsort(np.arange(len(ranked)) % blocks, kind="stable")]  # dealt out
