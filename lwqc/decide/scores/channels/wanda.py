"""Weights times the size of what they meet, as Wanda does, summed over a channel's slices."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from lwqc.decide.scores.channels.ranking import Importance, gathered
from lwqc.decide.scores.channels.score import ChannelScore, GroupFacts
from lwqc.graph.groups import Group
from lwqc.graph.readers import Reader
from lwqc.model.weights import ReadArray

Norms = NDArray[np.float64]


def wanda(
    group: Group, readers: Iterable[tuple[Reader, Norms]], read: ReadArray
) -> Importance | None:
    """Mean over the readers of sum |W| * ||x|| per channel [size]; None without a reader.

    readers: layers that read the group, each with the root mean square of its input features
    [convolution groups, features]. Source: arXiv 2306.11695, over the structures of a group.
    """
    parts = []
    for reader, norms in readers:
        owners = reader.owners(group)
        weight = np.abs(reader.operand.matrix(read)).reshape(len(owners), -1, owners.shape[1])
        parts.append(gathered(owners.ravel(), (weight.sum(1) * norms).ravel(), group.size))
    return np.asarray(np.mean(parts, axis=0)) if parts else None


def _of(facts: GroupFacts) -> Importance | None:
    norms = [
        (o.reader, np.sqrt(np.diagonal(o.gram, axis1=1, axis2=2) / max(o.row_count, 1)))
        for o in facts.observed
    ]
    return wanda(facts.group, norms, facts.read)


SCORES = {"wanda": ChannelScore(_of, "inputs")}
