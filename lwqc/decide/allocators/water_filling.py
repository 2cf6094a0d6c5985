"""Shares in proportion to a score, with caps: what a full item cannot take flows to the others.

The allocator of ECoFLaP (arXiv 2310.02998), whose released code adds the overflow instead of
subtracting it, and of CFSP (arXiv 2409.13199).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def water_fill(scores: Floats, weights: Floats, total: float, low: Floats, high: Floats) -> Floats:
    """Shares x_i in [low_i, high_i], proportional to scores, with sum(weights * x) = total.

    scores [n]: not negative. weights [n]: positive, what a share of 1 costs. Where a bound binds,
    the rest is shared by the others. Totals beyond reach give all low or all high.
    """
    if total >= float(weights @ high):
        return high.copy()
    if total <= float(weights @ low):
        return low.copy()

    def at(level: float) -> Floats:
        return np.clip(level * scores, low, high)

    bottom, top = 0.0, 1.0
    positive = scores[scores > 0]
    if len(positive):
        top = float(np.max(high)) / float(positive.min())
    if float(weights @ at(top)) < total:  # items without a score must take more than their least
        shares = at(top)
        room = weights @ (high - shares)
        return np.asarray(shares + (high - shares) * (total - float(weights @ shares)) / room)
    for _ in range(200):
        middle = (bottom + top) / 2
        if float(weights @ at(middle)) < total:
            bottom = middle
        else:
            top = middle
    return at(top)


def sigmoid_shares(distances: Floats, mean_share: float, sharpness: float = 1.0) -> Floats:
    """Scores of CFSP: a sigmoid of what each block changes, about the mean of all, times a share.

    distances [n]: mean angle between a block's input and output, over pi. sharpness: 10^4 over the
    number of tokens per token mean in the paper's code; 1 with means of the angle.
    """
    spread = float(np.std(distances)) or 1.0
    gates = 1 / (1 + np.exp(-sharpness * (distances - distances.mean()) / spread))
    return np.asarray(gates / gates.mean() * mean_share)
