"""Multiply-accumulates of one run."""

from __future__ import annotations

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
from lwqc.decide.search.space import SearchSpace
from lwqc.plans.bounds import Amount
from lwqc.plans.goals import Outcome


class Macs(Bounded):
    """Products of one run, at the sizes of the first feeds.

    Formats change what a product takes but not how many there are.
    """

    option = "max_macs"
    name = "MACs"
    unit = "MACs"
    cost = "macs"
    needs_search = True
    as_given = True

    def counted(self, work: Version, model: ir.Model) -> float:
        """Where they are known."""
        return work.job.macs(model)

    def outcomes(self, bound: Amount, reached: Reached) -> list[Outcome]:
        """Of the graph before formats."""
        if reached.counted is None:
            return []
        asked = bound.resolve(reached.work.original.macs)
        return [Outcome(self.name, asked, reached.counted, self.unit)]

    def reference(self, work: Version, log: SearchLog) -> float:
        """Of the original."""
        return work.original.macs

    def prepare(self, found: SearchModel, log: SearchLog) -> None:
        """Products shrink with what is left of a weight."""
        found.space.predict(self.cost, PredictedMacs(found.space))

    def real(self, name: str, done: Compressed, log: SearchLog) -> float:
        """Of an executed candidate."""
        return done.counted[self.option]


class PredictedMacs(Predicted):
    """By the share of each weight, and of each output, that is left."""

    pace: Parts = np.ones(1)

    def __init__(self, space: SearchSpace) -> None:
        self._stored = [tensor.macs for tensor in space.stored]
        self._written = [made.macs for made in space.written]

    def of_stored(self, number: int, level: int, share: float) -> tuple[float]:
        """Of a site's nodes."""
        return (self._stored[number] * share,)

    def of_written(self, number: int, share: float, narrow: bool) -> tuple[float]:
        """Of a node that belongs to no site."""
        return (self._written[number] * share,)

    def shorter(
        self, rows: NDArray[np.float64], left: NDArray[np.float64], level: int
    ) -> NDArray[np.float64]:
        """In proportion."""
        return rows * left


BUDGET = Macs()
