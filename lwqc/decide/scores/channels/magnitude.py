"""L1 and L2 magnitude of a channel's slices. Needs no data."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lwqc.decide.scores.channels.ranking import Member
from lwqc.decide.scores.channels.score import ChannelScore


def l1(member: Member) -> NDArray[np.float32]:
    """Sum of absolute weights per position."""
    total: NDArray[np.float32] = np.abs(member.rows).sum(1)
    return total


def l2(member: Member) -> NDArray[np.float32]:
    """Sum of squared weights per position."""
    total: NDArray[np.float32] = np.square(member.rows).sum(1)
    return total


SCORES = {"l1": ChannelScore.of_weights(l1), "l2": ChannelScore.of_weights(l2)}
