"""What pruning is asked to do, and the model that it is done to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.data import Dataset, open_data
from lwqc.errors import InputError
from lwqc.graph.groups import Groups, find_groups
from lwqc.graph.pruned_cost import PrunedCost
from lwqc.graph.readers import Reader, find_readers
from lwqc.graph.shapes import named_sizes, shapes_at
from lwqc.passes.prepare_pruning import prepare_pruning
from lwqc.random_inputs import random_feeds
from lwqc.scores.channels.final_error import Loss
from lwqc.scores.channels.ranking import Normaliser
from lwqc.workspace import Workspace

Score = Literal["l1", "l2", "fpgm", "wanda", "obs", "ablation", "taylor"]
Compensate = Literal["none", "bias", "refit"]
_RANDOM_BATCHES = 32


@dataclass(frozen=True)
class PruneOptions:
    """What to remove.

    ratio: share of the multiply-accumulates (`by` macs), of the weights (parameters) or of the
    channels of every group (channels) that goes. score: criterion within a group. normalise: how
    groups are compared. scope: `global` takes the cheapest channels of the whole model, `local`
    the same share of every group. per_cost: compare by price per MAC (or parameter) saved.
    round_to: widths stay multiples of it where a group allows. min_channels: each group keeps at
    least that many. max_ratio: largest share that one group loses under `global`.
    overrides: group name or pattern -> share that goes. statistics: also prune groups that a
    normalisation or pooling mixes. compensate: see `plan.Pruning`. loss: for `taylor`, of
    (outputs, feeds).
    """

    ratio: float
    by: Literal["macs", "parameters", "channels"] = "macs"
    score: Score = "l2"
    normalise: Normaliser | Literal["output"] = "mean"
    scope: Literal["global", "local"] = "global"
    per_cost: bool = False
    round_to: int = 1
    min_channels: int = 1
    max_ratio: float = 0.9
    overrides: Mapping[str, float] = field(default_factory=dict)
    statistics: bool = False
    compensate: Compensate = "none"
    batch_norm: bool = False
    calibration: Literal["data", "random"] = "data"
    resizable_outputs: tuple[str, ...] = ()
    recipe: str = ""
    loss: Loss | None = None

    def __post_init__(self) -> None:
        """Raises InputError for values out of range and for options that exclude each other."""
        for name, value in (("ratio", self.ratio), *self.overrides.items()):
            if not isinstance(value, (int, float)) or not 0 <= value < 1:
                raise InputError(f"{name} {value}: expected a share from 0 to below 1")
        for name, count in (("round-to", self.round_to), ("min-channels", self.min_channels)):
            if not isinstance(count, int) or count < 1:
                raise InputError(f"--{name} {count}: expected a whole number of at least 1")
        if isinstance(self.resizable_outputs, str):
            raise InputError("resizable_outputs: expected a tuple of names")
        if (self.score == "taylor") != (self.loss is not None):
            raise InputError(
                "--score taylor needs --loss module:function(outputs, feeds)"
                if self.loss is None
                else f"--loss is for --score taylor, not for {self.score}"
            )
        if self.normalise == "output" and self.score != "obs":
            raise InputError(f"--normalise output needs --score obs, not {self.score}")


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


def calibration(work: Workspace, kind: Literal["data", "random"]) -> Dataset:
    """The data that statistics are taken on: the caller's, or random inputs with seed 0.

    Random inputs have the sizes of the caller's first feeds; images get natural statistics.
    """
    if kind == "data":
        return work.data
    first = {n: a.shape for n, a in work.data.first().items()}
    sizes = named_sizes(work.model, first)
    feeds = list(random_feeds(work.model, _RANDOM_BATCHES, 0, sizes, smooth=True))
    return open_data(feeds, work.model)
