"""What the gradient flow of the whole model loses with a channel, before any training."""

from __future__ import annotations

from lwqc.decide.scores.channels.ranking import Ranking, together
from lwqc.decide.scores.channels.score import ChannelScore, GroupFacts

_TEMPERATURE = 200.0  # that outputs are divided by, as in the authors' code


def grasp(facts: GroupFacts) -> Ranking | None:
    """Channels by the sum of -weight * (Hessian times gradient), the largest first.

    That is, up to a factor, what the squared norm of the gradient grows by without them; channels
    without which it grows most go first, and where it shrinks most they stay. None for groups
    without weights that have slopes. Source: GraSP (arXiv 2002.07376), over all weights that go
    with a channel.
    """
    assert facts.gradients is not None
    weights, curved = facts.gradients.weights, facts.gradients.curved(_TEMPERATURE)
    lost = together(
        facts.group, lambda name: weights[name] * curved[name] if name in curved else None
    )
    return None if lost is None else Ranking.signed(lost)


SCORES = {"grasp": ChannelScore(grasp, "gradients")}
