"""What removing branches costs at the model's outputs, measured."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from types import MappingProxyType

from lwqc.errors import InputError
from lwqc.runtime.counted import counted
from lwqc.runtime.measure import weighted
from lwqc.runtime.stats.collector import Feeds, Runner
from lwqc.runtime.stats.output_divergence import Measure, OutputDivergence

Without = Callable[[Collection[str]], Runner]


class Ablation:
    """Divergence of the outputs without some branches. Source: FinerCut, arXiv 2405.18218."""

    def __init__(
        self,
        without: Without,
        data: Iterable[Feeds],
        measure: Measure = "js",
        weights: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        """Take the reference outputs, once.

        without: names of branches -> the model without them, which is run on every batch.
        data: few batches, kept in memory. weights: of outputs. Raises InputError when data holds
        no sample.
        """
        self._without, self._weights = without, weights
        self._batches = list(counted(data, "the data that is kept"))
        if not self._batches:
            raise InputError("the data holds no sample; a divergence needs at least one")
        runs = map(without(()), self._batches)
        self._references = [
            {name: OutputDivergence(value, measure) for name, value in found.items()}
            for found in counted(runs, "outputs of the original", len(self._batches))
        ]
        self._known: dict[frozenset[str], float] = {frozenset(): 0.0}

    def __call__(self, removed: Collection[str]) -> float:
        """Mean over the batches, worst over the outputs; the same set is measured once."""
        key = frozenset(removed)
        if key not in self._known:
            run = self._without(key)
            totals: dict[str, float] = {}
            for feeds, reference in zip(self._batches, self._references, strict=True):
                for name, value in run(feeds).items():
                    totals[name] = totals.get(name, 0.0) + reference[name](value)
            losses = (weighted(loss, name, self._weights) for name, loss in totals.items())
            self._known[key] = max(losses) / len(self._batches)
        return self._known[key]
