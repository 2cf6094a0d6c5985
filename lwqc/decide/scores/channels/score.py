"""What a score for channels is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lwqc.decide.scores.channels.gradients import Gradients
from lwqc.decide.scores.channels.ranking import Importance, Member, Ranking, aggregated
from lwqc.graph.groups import Group
from lwqc.graph.linear_operand import Matrix, Operand
from lwqc.graph.readers import Reader
from lwqc.model.extensions import CHANNEL_SCORES
from lwqc.model.weights import ReadArray

Trial = Callable[[dict[Operand, Matrix]], float]


@dataclass(frozen=True)
class Observed:
    """A layer that reads a group, and what came in on the data.

    gram [convolution groups, features, features]: sum over rows of the outer products of its input
    features, in the order of `reader.owners(group)`. row_count: how many rows there were.
    layer_count: how many layers read the same weight; the rows are those of all of them.
    """

    reader: Reader
    gram: NDArray[np.float64]
    row_count: int
    layer_count: int = 1


@dataclass(frozen=True)
class GroupFacts:
    """What a score may look at, of one group of channels that go together.

    read: the numbers of a stored tensor. readers: layers in whose input features the group takes
    part; none for scores that look at weights. observed: those whose inputs were seen, for scores
    that look at inputs. error, loss: of the outputs with other matrices [out, features] in some of
    these layers, for scores that look at outputs; loss is the caller's, None where there is none.
    gradients: slopes of the loss along the weights, for scores that look at gradients; and in place
    of `loss` where it is one of torch.
    """

    group: Group
    read: ReadArray
    readers: Sequence[Reader] = ()
    observed: Sequence[Observed] = ()
    error: Trial | None = None
    loss: Trial | None = None
    gradients: Gradients | None = None


@dataclass(frozen=True)
class ChannelScore:
    """A criterion by which channels go.

    importance: of each channel of a group [size], the least important goes first; or a `Ranking`,
    where the order is not that of single numbers; or None where nothing can be told, and magnitude
    decides. looks_at: what `GroupFacts` holds for it. needs_loss: the caller must give one; one
    that looks at gradients takes the caller's or has its own. own_loss: what that is, for the user.
    own_scale: its costs are errors of the layers that read a group, which `normalise = "output"`
    brings to the scale of the outputs.
    """

    importance: Callable[[GroupFacts], Importance | Ranking | None]
    looks_at: Literal["weights", "inputs", "outputs", "gradients"] = "weights"
    needs_loss: bool = False
    own_loss: str = "slopes are those of the distance from the outputs with noise on them"
    own_scale: bool = False

    @property
    def takes_loss(self) -> bool:
        """Whether a loss of the caller's means anything to it."""
        return self.needs_loss or self.looks_at == "gradients"

    @classmethod
    def of_weights(cls, saliency: Callable[[Member], NDArray[np.floating]]) -> ChannelScore:
        """A score from the weights alone.

        saliency: of one weight [positions], where `member.rows` is [positions, everything else];
        positions of one channel add up, and the mean over the group's weights is taken.
        """
        return cls(lambda facts: aggregated(facts.group, facts.read, saliency))


def channel_score(name: str) -> ChannelScore:
    """The score of that name. Raises InputError."""
    found: ChannelScore = CHANNEL_SCORES.find(name)
    return found
