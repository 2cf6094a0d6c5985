"""A model that is ready to lose channels."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.compile.version import Version
from lwqc.errors import InputError
from lwqc.graph.groups import Groups, find_groups
from lwqc.graph.pruned_cost import PrunedCost
from lwqc.graph.readers import Reader, find_readers
from lwqc.graph.shapes import named_sizes, shapes_at
from lwqc.passes.prepare_pruning import prepare_pruning
from lwqc.runtime.data import Dataset, open_data
from lwqc.runtime.random_inputs import random_feeds

_RANDOM_BATCHES = 32


class Prunable:
    """A model with its groups, ready to be scored. The model is a prepared copy."""

    def __init__(self, model: ir.Model, resizable_outputs: tuple[str, ...] = ()) -> None:
        """Raises InputError for an output name that the model lacks."""
        known = {v.name for v in model.graph.outputs}
        for name in resizable_outputs:
            if name not in known:
                raise InputError(f"{name}: the model has no such output")
        self.model, self.shapes = prepare_pruning(model)
        self.resizable_outputs = resizable_outputs

    @cached_property
    def groups(self) -> Groups:
        """All groups."""
        return find_groups(self.model, self.shapes, resizable_outputs=self.resizable_outputs)

    @cached_property
    def readers(self) -> list[Reader]:
        """Layers that read the groups."""
        return find_readers(self.groups)

    def cost(self, inputs: Mapping[str, NDArray[np.generic]]) -> PrunedCost:
        """MACs and parameters for inputs like these."""
        sizes = {name: array.shape for name, array in inputs.items()}
        return PrunedCost(self.groups, shapes_at(self.model, sizes))


def calibration(work: Version, kind: Literal["data", "random"]) -> Dataset:
    """The data that statistics are taken on: the caller's, or random inputs with seed 0.

    Random inputs have the sizes of the caller's first feeds; images get natural statistics.
    """
    if kind == "data":
        return work.job.data.fit
    first = {n: a.shape for n, a in work.job.data.fit.first().items()}
    sizes = named_sizes(work.model, first)
    feeds = list(random_feeds(work.model.graph, _RANDOM_BATCHES, 0, sizes, smooth=True))
    return open_data(feeds, work.model)
