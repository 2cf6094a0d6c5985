"""A factor of 1 on each channel of a group, wherever it is read, and slopes along it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.decide.scores.channels.ranking import Importance
from lwqc.graph.groups import Group
from lwqc.graph.linear_operand import Matrix, Operand
from lwqc.graph.readers import Reader
from lwqc.model.weights import ReadArray


@dataclass(frozen=True)
class Gates:
    """Gates of a group. readers: layers that read it. read: the numbers of a stored tensor."""

    group: Group
    readers: Sequence[Reader]
    read: ReadArray

    @cached_property
    def _layers(self) -> list[tuple[Operand, Matrix, NDArray[np.intp]]]:
        """Each with its matrix, and the channel of each of its features."""
        # A stored tensor counts once, whatever number of layers read it: its slope is their sum.
        once = {reader.operand.weight.name: reader for reader in self.readers}.values()
        return [(r.operand, r.operand.matrix(self.read), r.owners(self.group)) for r in once]

    def slopes(self, gradients: Mapping[str, NDArray[np.floating]]) -> Importance:
        """Slope of a loss along each gate [size]: sum of weight times gradient where it is read.

        gradients: of the loss, by stored tensor; layers without one do not count.
        """
        result = np.zeros(self.group.size)
        for operand, matrix, owners in self._layers:
            gradient = gradients.get(operand.weight.name)
            if gradient is None:
                continue
            terms = matrix * operand.matrix(partial(_itself, gradient))
            shares = terms.reshape(len(owners), -1, terms.shape[1]).sum(1)
            mine = owners >= 0
            result += np.bincount(owners[mine], shares[mine], self.group.size)
        return result


def _itself(array: NDArray[np.floating], tensor: ir.TensorProtocol) -> NDArray[np.floating]:
    """In place of what a tensor stores."""
    return array
