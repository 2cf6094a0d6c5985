"""How relevant a channel is for what the model says, as relevance flows back from the outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from lwqc.decide.scores.channels.ranking import Importance
from lwqc.decide.scores.channels.score import ChannelScore, GroupFacts

if TYPE_CHECKING:
    from lwqc.learn.relevance import Rule


def lrp(rule: Rule) -> Callable[[GroupFacts], Importance | None]:
    """A score by a rule of `lwqc.learn.relevance`.

    It is the mean over the samples of the size of a channel's relevance where it is read [size];
    None where no layer with a stored weight reads the group. Source: Yeom et al. (arXiv
    1912.08881).
    """

    def score(facts: GroupFacts) -> Importance | None:
        assert facts.gradients is not None
        if not facts.readers:
            return None
        return np.asarray(np.abs(facts.gradients.relevance(rule)[facts.group.name]).mean(0))

    return score


def _by(rule: Rule) -> ChannelScore:
    own = "what is explained is the largest channel at each place of the outputs"
    return ChannelScore(lrp(rule), "gradients", own_loss=own)


SCORES = {
    "lrp": _by("z-plus"),
    "lrp-epsilon": _by("epsilon"),
    "lrp-alpha-beta": _by("alpha-beta"),
}
