"""Optimal Brain Surgeon over groups: the error that remains when the kept weights make up for it.

Source: OBSPA (arXiv 2403.18955) and the OBS formulas of Hassibi and Stork (1993): removing the
feature columns P of W costs tr(W_P ([H^-1]_PP)^-1 W_P^T), and the best kept weights lose
W_P ([H^-1]_PP)^-1 [H^-1]_P.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lwqc.decide.scores.channels.ranking import Ranking
from lwqc.decide.scores.channels.score import ChannelScore, GroupFacts

Matrix = NDArray[np.float64]
_STEPS = 24  # channels go in this many rounds at least; scores are renewed in between


@dataclass
class Layer:
    """A layer that reads the group: one convolution group of it.

    weight [out, features]; inverse [features, features]: of the damped mean Gram matrix;
    owner [features]: channel of the group at each feature, or -1; scale: what errors are relative
    to, the energy of the layer's whole output.
    """

    weight: Matrix
    inverse: Matrix
    owner: NDArray[np.intp]
    scale: float


def layers(
    weight: Matrix,
    gram: Matrix,
    owners: NDArray[np.intp],
    rows: int,
    damp: float = 0.01,
    count: int = 1,
) -> list[Layer]:
    """A reader as independent layers, one per convolution group.

    weight [out, features], gram [groups, features, features] (sums over `rows`), owners [groups,
    features]. damp: of the mean diagonal. count: of layers with this weight, each of whose errors
    counts.
    """
    parts = weight.reshape(len(gram), -1, weight.shape[1])
    means = [(g / max(rows, 1)).astype(np.float64) for g in gram]
    energy = sum(float(np.vdot(p @ m, p)) for p, m in zip(parts, means, strict=True))
    return [
        Layer(part.copy(), _inverse(mean, damp), owner, max(energy, 1e-30) / count)
        for part, mean, owner in zip(parts, means, owners, strict=True)
        if (owner >= 0).any()
    ]


def one_layer(weight: Matrix, mean: Matrix, *, scale: float, damp: float = 0.01) -> Layer:
    """A layer [out, channels] whose features are the channels themselves."""
    return Layer(weight, _inverse(mean, damp), np.arange(len(mean)), scale)


def _inverse(mean: Matrix, damp: float) -> Matrix:
    from scipy.linalg import cho_factor, cho_solve

    size = len(mean)
    diagonal = max(float(np.trace(mean)) / size, 1e-12)
    factor = cho_factor(mean + damp * diagonal * np.eye(size))
    return np.asarray(cho_solve(factor, np.eye(size)))


def obs_ranking(group_layers: Sequence[Layer], size: int) -> Ranking:
    """Remove channel after channel, the cheapest first, the others making up for it each time.

    cost: increase of the relative squared output error, summed over the layers. The layers are
    used up.
    """
    left = list(range(size))
    order: list[int] = []
    cost: list[float] = []
    while len(left) > 1:
        errors = sum((_errors(layer, left) for layer in group_layers), np.zeros(len(left)))
        count = min(max(1, len(left) // _STEPS), len(left) - 1)
        chosen = np.argsort(errors, kind="stable")[:count]
        removed = [left[i] for i in chosen]
        order += removed
        cost += [max(float(errors[i]), 0.0) for i in chosen]
        for layer in group_layers:
            _eliminate(layer, removed)
        left = [c for c in left if c not in set(removed)]
    order += left
    cost += [max([1.0, *cost])] * len(left)
    return Ranking(np.asarray(order, np.intp), np.asarray(cost))


def _errors(layer: Layer, channels: Sequence[int]) -> Matrix:
    """Cost of removing each channel alone [channels]."""
    columns = [np.flatnonzero(layer.owner == c) for c in channels]
    width = len(columns[0]) if columns else 0
    if not width or any(len(c) != width for c in columns):
        return np.asarray([_error(layer, c) for c in columns])
    picked = np.stack(columns)
    if width == 1:
        flat = picked[:, 0]
        diagonal = layer.inverse[flat, flat]
        return np.asarray(np.square(layer.weight[:, flat]).sum(0) / diagonal / layer.scale)
    blocks = layer.inverse[picked[:, :, None], picked[:, None, :]]
    weights = layer.weight[:, picked].transpose(1, 2, 0)
    solved = np.linalg.solve(blocks, weights)
    return np.asarray((weights * solved).sum((1, 2)) / layer.scale)


def _error(layer: Layer, columns: NDArray[np.intp]) -> float:
    if not len(columns):
        return 0.0
    weights = layer.weight[:, columns].T
    solved = np.linalg.solve(layer.inverse[np.ix_(columns, columns)], weights)
    return float((weights * solved).sum() / layer.scale)


def _eliminate(layer: Layer, channels: Sequence[int]) -> None:
    """Take channels out and let the rest make up for them."""
    gone = np.isin(layer.owner, channels)
    if not gone.any():
        return
    rows = layer.inverse[gone]
    solved = np.linalg.solve(rows[:, gone], rows)
    keep = ~gone
    layer.weight = (layer.weight - layer.weight[:, gone] @ solved)[:, keep]
    layer.inverse = (layer.inverse - rows.T @ solved)[np.ix_(keep, keep)]
    layer.owner = layer.owner[keep]


def _of(facts: GroupFacts) -> Ranking:
    parts: list[Layer] = []
    for seen in facts.observed:
        weight = seen.reader.operand.matrix(facts.read)
        owners = seen.reader.owners(facts.group)
        parts += layers(weight, seen.gram, owners, seen.row_count, count=seen.layer_count)
    return obs_ranking(parts, facts.group.size)


SCORES = {"obs": ChannelScore(_of, "inputs", own_scale=True)}
