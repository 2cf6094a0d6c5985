"""Distance to the other channels: one that lies amid them can be replaced by them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lwqc.decide.scores.channels.ranking import Member
from lwqc.decide.scores.channels.score import ChannelScore


def fpgm(member: Member) -> NDArray[np.float32]:
    """Sum of Euclidean distances of a slice to all slices, per position.

    Source: Filter Pruning via Geometric Median (arXiv 1811.00250).
    """
    rows = member.rows.astype(np.float64)
    squares = np.square(rows).sum(1)
    distances = squares[:, None] + squares[None, :] - 2 * rows @ rows.T
    total: NDArray[np.float32] = np.sqrt(np.maximum(distances, 0)).sum(1).astype(np.float32)
    return total


SCORES = {"fpgm": ChannelScore.of_weights(fpgm)}
