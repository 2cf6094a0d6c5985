"""What leaving channels out adds to the loss when the others make up for it, by slopes of samples.

CHITA (arXiv 2302.14623) fits a sparse vector b to the weights w in the norm of the slopes A of
single samples: the least |A (w - b)|² / 2 + damping. Here w are the gates of a group's channels,
all 1, and greedy elimination, which leaves an order of all channels, stands for its local search.
"""

from __future__ import annotations

import numpy as np

from lwqc.decide.scores.channels.obs import obs_ranking, one_layer
from lwqc.decide.scores.channels.ranking import Ranking
from lwqc.decide.scores.channels.score import ChannelScore, GroupFacts


def chita(facts: GroupFacts) -> Ranking | None:
    """Channels in the order in which they go, at what each adds then to the loss of a sample.

    Without what the others make up for that is `fisher`. None where no layer with a stored weight
    reads the group.
    """
    assert facts.gradients is not None
    if not facts.readers:
        return None
    slopes = facts.gradients.by_sample[facts.group.name].astype(np.float64)
    mean = slopes.T @ slopes / len(slopes)
    if not mean.any():
        return Ranking.of(np.zeros(facts.group.size))
    return obs_ranking([one_layer(np.ones((1, len(mean))), mean, scale=2.0)], len(mean))


SCORES = {"chita": ChannelScore(chita, "gradients")}
