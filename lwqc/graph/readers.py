"""Linear layers that read a group's channels as their input features."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lwqc.graph.axes import Factor, positions, split_product
from lwqc.graph.groups import Group, Groups
from lwqc.graph.linear_operand import Operand, linear_operand


@dataclass(frozen=True, eq=False)
class Reader:
    """One layer and its input features in terms of the algebra.

    features: dimension of the input features of one convolution group, without the kernel;
    groups: of the convolution groups, None when there is one. kernel: positions per channel.
    """

    operand: Operand
    features: Factor
    groups: Factor | None
    kernel: int

    def owners(self, group: Group) -> NDArray[np.intp]:
        """Index of the group at every feature [convolution groups, features], or -1.

        Features are in the order of the layer's weight rows, the kernel varying fastest.
        """
        inner = np.repeat(positions(self.features, group.factor), self.kernel)
        if self.groups is None:
            return inner[None, :]
        outer = positions(self.groups, group.factor)[:, None]
        return np.where(outer >= 0, outer, inner[None, :])


def find_readers(groups: Groups) -> list[Reader]:
    """All Conv, Gemm and MatMul layers with a stored weight, in graph order."""
    found = []
    for node in groups.analysis.graph:
        operand = linear_operand(node)
        if isinstance(operand, Operand):
            reader = _reader(groups, operand)
            if reader is not None:
                found.append(reader)
    return found


def _reader(groups: Groups, operand: Operand) -> Reader | None:
    analysis = groups.analysis
    dims = analysis.operand(operand.node, 1)
    data = analysis.operand(operand.node, 0)
    if dims is None or data is None:
        return None
    if operand.node.op_type != "Conv":
        return Reader(operand, dims[1 - operand.out_axis], None, 1)
    kernel = int(np.prod(operand.shape[2:]))
    if operand.groups == 1:
        return Reader(operand, dims[1], None, kernel)
    if operand.groups < 1 or dims[0].size % operand.groups:
        return None
    return Reader(operand, dims[1], _outer(dims[0], operand.groups), kernel)


def _outer(stacked: Factor, count: int) -> Factor:
    """The convolution groups in `groups · outputs of each`."""
    outer, _ = split_product(stacked, stacked.size // count)
    return outer
