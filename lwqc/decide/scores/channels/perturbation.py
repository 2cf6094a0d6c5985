"""What happens at the outputs when one channel is changed: ablation, and Taylor."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from lwqc.decide.scores.channels.gates import Gates
from lwqc.decide.scores.channels.ranking import Importance
from lwqc.decide.scores.channels.score import ChannelScore, GroupFacts
from lwqc.graph.groups import Group
from lwqc.graph.linear_operand import Matrix, Operand
from lwqc.graph.readers import Reader
from lwqc.model.weights import ReadArray

Measure = Callable[[dict[Operand, Matrix]], float]
_STEP = 0.02  # relative change of a channel for the difference quotient


def ablation(
    group: Group, readers: Sequence[Reader], measure: Measure, read: ReadArray
) -> Importance:
    """`measure` with each channel set to zero where it is read [size]; one run per channel."""
    return _scaled(group, readers, read, lambda weights: measure(weights(0.0)))


def taylor(group: Group, readers: Sequence[Reader], loss: Measure, read: ReadArray) -> Importance:
    """|dL/dg| of a gate g = 1 on each channel [size], by a central difference: two runs each.

    Equal to |sum of weight times gradient| over what reads the channel: the first-order Taylor
    criterion (arXiv 1611.06440), without backpropagation. loss: of the model with other weights.
    """

    def slope(weights: Callable[[float], dict[Operand, Matrix]]) -> float:
        return abs(loss(weights(1 + _STEP)) - loss(weights(1 - _STEP))) / (2 * _STEP)

    return _scaled(group, readers, read, slope)


def _scaled(
    group: Group,
    readers: Sequence[Reader],
    read: ReadArray,
    score: Callable[[Callable[[float], dict[Operand, Matrix]]], float],
) -> Importance:
    matrices = [(r, r.operand.matrix(read), r.owners(group)) for r in readers]
    result = np.zeros(group.size)
    for channel in range(group.size):

        def weights(factor: float, channel: int = channel) -> dict[Operand, Matrix]:
            return {
                reader.operand: _with(matrix, owners == channel, factor)
                for reader, matrix, owners in matrices
            }

        result[channel] = score(weights)
    return result


def _with(matrix: Matrix, mine: np.ndarray, factor: float) -> Matrix:
    parts = matrix.reshape(len(mine), -1, matrix.shape[1]).copy()
    for part, columns in zip(parts, mine, strict=True):
        part[:, columns] *= factor
    return parts.reshape(matrix.shape)


def _ablation(facts: GroupFacts) -> Importance:
    assert facts.error is not None
    return ablation(facts.group, facts.readers, facts.error, facts.read)


def _taylor(facts: GroupFacts) -> Importance:
    if facts.gradients is not None:  # the same by one backward pass
        gates = Gates(facts.group, facts.readers, facts.read)
        return np.abs(gates.slopes(facts.gradients.mean))
    assert facts.loss is not None
    return taylor(facts.group, facts.readers, facts.loss, facts.read)


SCORES = {
    "ablation": ChannelScore(_ablation, "outputs"),
    "taylor": ChannelScore(_taylor, "outputs", needs_loss=True),
}
