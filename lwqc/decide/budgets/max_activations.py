"""Bytes of activations that are needed at once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.compile.budget import Reached
from lwqc.compile.compressed import Compressed
from lwqc.compile.version import Version
from lwqc.decide.search.bounded import Bounded
from lwqc.decide.search.log import SearchLog
from lwqc.decide.search.pace import Parts
from lwqc.decide.search.predicted import Predicted
from lwqc.decide.search.search_model import SearchModel
from lwqc.graph.alive import moments
from lwqc.graph.shapes import shapes_at
from lwqc.plans.bounds import Amount
from lwqc.plans.goals import Outcome


class Activations(Bounded):
    """The most that nodes have written and that is still to be read.

    Counted at the sizes of the first feeds, in the order of the graph, before formats, see
    `lwqc.graph.alive`: what a device needs beside weights, whatever its runtime adds to that.
    """

    option = "max_activations"
    name = "activations"
    unit = "bytes"
    cost = "activation_bytes"
    needs_search = True
    as_given = True

    def counted(self, work: Version, model: ir.Model) -> float:
        """Where shapes are known."""
        sizes = {n: a.shape for n, a in work.job.data.fit.first().items()}
        shapes, nodes = shapes_at(model, sizes), list(model.graph)
        written = [sum(_bytes(v, shapes) for v in node.outputs) for node in nodes]
        return float((moments(model.graph, len(nodes)) @ np.array(written)).max(initial=0.0))

    def outcomes(self, bound: Amount, reached: Reached) -> list[Outcome]:
        """Of the graph before formats."""
        if reached.counted is None:
            return []
        original = reached.work.original
        asked = bound.resolve(self.counted(reached.work, original.model))
        return [Outcome(self.name, asked, reached.counted, self.unit)]

    def reference(self, work: Version, log: SearchLog) -> float:
        """Of the original."""
        return self.counted(work, work.original.model)

    def prepare(self, found: SearchModel, log: SearchLog) -> None:
        """By what narrower layers write; what else changes is counted at the end."""
        predicted = PredictedActivations(found)
        whole = predicted.parts(predicted.whole, 0)[0]
        predicted.pace = np.array([self.counted(found.work, found.work.model) / max(whole, 1.0)])
        found.space.predict(self.cost, predicted)

    def real(self, name: str, done: Compressed, log: SearchLog) -> float:
        """Of an executed candidate."""
        return done.counted[self.option]


class PredictedActivations(Predicted):
    """Elements at the moment when there are most. whole: of the model as it is."""

    def __init__(self, found: SearchModel) -> None:
        written = found.space.written
        self.pace: Parts = np.ones(1)
        self.whole = np.array([[made.elements] for made in written]).reshape(-1, 1)
        self._together = moments(found.prunable.model.graph, len(written))

    def of_stored(self, number: int, level: int, share: float) -> tuple[float]:
        """Weights are not counted."""
        return (0.0,)

    def of_written(self, number: int, share: float, narrow: bool) -> tuple[float]:
        """Formats are not counted either."""
        return (self.whole[number, 0] * share,)

    def shorter(
        self, rows: NDArray[np.float64], left: NDArray[np.float64], level: int
    ) -> NDArray[np.float64]:
        """In proportion."""
        return rows * left

    def parts(self, rows: NDArray[np.float64], tensors: int) -> Parts:
        """[1]"""
        return np.array([(self._together @ rows[tensors:, 0]).max(initial=0.0)])


def _bytes(value: ir.Value, shapes: Mapping[str, Sequence[int]]) -> float:
    size = value.dtype.itemsize if value.dtype is not None else 4
    return size * float(math.prod(shapes.get(value.name or "", (0,))))


BUDGET = Activations()
