"""CFSP's fine criterion: a channel's part of each weight around it, times how large it gets.

Source: CFSP, arXiv 2409.13199. Its released code divides every weight by the mean along the axis
that it then averages over, so that the weights cancel and only the size of the activation is left;
here a channel's part is taken of all channels of its group, as the paper has it.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from lwqc.decide.scores.channels.ranking import Importance, Member, gathered, members
from lwqc.decide.scores.channels.score import ChannelScore, GroupFacts, Observed
from lwqc.graph.groups import Group
from lwqc.model.weights import ReadArray

Floats = NDArray[np.float64]
_TINY = 1e-30


def cfsp(
    group: Group, observed: Iterable[Observed], producers: Iterable[Member], read: ReadArray
) -> Importance | None:
    """Sum of a channel's parts times its root mean square [size]; None without a reader.

    observed: layers that read the group, with their inputs: the part of |W| * ||x|| that each
    channel has in what every output sums up, mean over the outputs. producers: weights that make
    the channels: the part of |W| that each channel has in what every input feeds, mean over them.
    """
    parts: list[Importance] = []
    sizes: list[Importance] = []
    for seen in observed:
        owners = seen.reader.owners(group)
        energy = np.diagonal(seen.gram, axis1=1, axis2=2) / max(seen.row_count, 1)
        weight = np.abs(seen.reader.operand.matrix(read)).reshape(len(owners), -1, owners.shape[1])
        met = weight * np.sqrt(energy)[:, None, :] * (owners >= 0)[:, None, :]
        shares = met / np.maximum(met.sum((0, 2), keepdims=True), _TINY)
        parts.append(gathered(owners.ravel(), shares.mean(1).ravel(), group.size))
        sizes.append(np.sqrt(gathered(owners.ravel(), energy.ravel(), group.size)))
    if not sizes:
        return None
    for member in producers:
        weight = np.abs(member.rows).astype(np.float64) * (member.owner >= 0)[:, None]
        shares = weight / np.maximum(weight.sum(0), _TINY)
        parts.append(gathered(member.owner, shares.mean(1), group.size))
    return np.asarray(np.sum(parts, axis=0) * np.mean(sizes, axis=0))


def _of(facts: GroupFacts) -> Importance | None:
    read = {reader.operand.weight.source for reader in facts.readers}
    producers = (m for m in members(facts.group, facts.read) if m.occurrence.value not in read)
    return cfsp(facts.group, facts.observed, producers, facts.read)


SCORES = {"cfsp": ChannelScore(_of, "inputs")}
