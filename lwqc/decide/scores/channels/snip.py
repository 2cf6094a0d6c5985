"""How sensitive the loss is to the connections of a channel, before any training."""

from __future__ import annotations

import numpy as np

from lwqc.decide.scores.channels.ranking import Importance, together
from lwqc.decide.scores.channels.score import ChannelScore, GroupFacts


def snip(facts: GroupFacts) -> Importance | None:
    """Share of the connection sensitivity of the whole model that goes with a channel [size].

    Of one connection it is |weight times gradient| of the mean loss, over its sum over all
    connections. None for groups without weights that have slopes. Source: SNIP (arXiv 1810.02340),
    over all weights that go with a channel.
    """
    assert facts.gradients is not None
    slopes, weights = facts.gradients.mean, facts.gradients.weights
    total = facts.gradients.sensitivity
    return together(
        facts.group,
        lambda name: np.abs(weights[name] * slopes[name]) / total if name in slopes else None,
    )


SCORES = {"snip": ChannelScore(snip, "gradients")}
