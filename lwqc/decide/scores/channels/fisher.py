"""What leaving a channel out adds to the loss, by the slopes of single samples."""

from __future__ import annotations

import numpy as np

from lwqc.decide.scores.channels.ranking import Importance
from lwqc.decide.scores.channels.score import ChannelScore, GroupFacts


def fisher(facts: GroupFacts) -> Importance | None:
    """Half of the mean over the samples of the squared slope along a gate [size].

    The gate is one for all layers that read the group, so their shares add up before the square:
    activation times gradient, or weight times gradient, which have the same sum. None where no
    layer with a stored weight reads the group. Source: Theis et al. (arXiv 1801.05787); for
    coupled layers Group Fisher (arXiv 2108.00708).
    """
    assert facts.gradients is not None
    if not facts.readers:
        return None
    return np.asarray(np.square(facts.gradients.by_sample[facts.group.name]).mean(0) / 2)


SCORES = {"fisher": ChannelScore(fisher, "gradients")}
