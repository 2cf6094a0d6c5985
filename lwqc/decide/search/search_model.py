"""What a search over whole plans works with: the space of a model, and what candidates become."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lwqc.compile.gated_model import comparable_outputs
from lwqc.compile.prunable import Prunable
from lwqc.compile.version import Version
from lwqc.decide.allocators.evolutionary import Candidate
from lwqc.decide.search.items import Builder
from lwqc.decide.search.shorter import Shorter
from lwqc.decide.search.space import (
    Kind,
    SearchSpace,
)
from lwqc.decide.search.trial_model import TrialSpec
from lwqc.decide.search.trial_spec import trial_spec
from lwqc.graph.groups import Group
from lwqc.graph.logits import are_logits
from lwqc.graph.sites import Site
from lwqc.plans.plan import SiteEntry
from lwqc.quant.methods import Method
from lwqc.runtime.stats.output_divergence import Measure


@dataclass(frozen=True)
class SearchModel:
    """The space of a model and what is needed to turn a candidate into a plan.

    groups: item of a width -> its group. constant: sites whose format is not searched. grams: of
    the inputs of sites whose channels may go. gains: see `TrialTensor`. shorter: models with fewer
    tokens, by level.
    """

    work: Version
    prunable: Prunable
    space: SearchSpace
    groups: Mapping[int, Group]
    constant: Mapping[str, SiteEntry]
    grams: Mapping[str, NDArray[np.float64]]
    measure: Measure
    sites: Mapping[str, Site]
    gains: Mapping[str, tuple[float, ...]]
    shorter: tuple[Shorter, ...] = ()

    def shortened(self, candidate: Candidate) -> Shorter | None:
        """What the candidate goes on with of the tokens, None for all."""
        tokens = self.space.tokens
        level = len(self.shorter) if tokens is None else candidate[tokens.item]
        return self.shorter[level] if level < len(self.shorter) else None

    def version(self, candidate: Candidate) -> Version:
        """The model that the candidate's other changes are made to."""
        short = self.shortened(candidate)
        return self.work if short is None else short.version

    @cached_property
    def spec(self) -> TrialSpec:
        """What candidates are evaluated with."""
        return trial_spec(
            self.prunable.model,
            self.space,
            self.work.job.data.fit.halves()[1],
            self.grams,
            self.gains,
            self.measure,
            self.work.job.weights,
            [Prunable(short.version.model).model for short in self.shorter],
        )


@dataclass(frozen=True)
class Judged:
    """What candidates are told apart by.

    outputs: measure of their divergence; `auto` is `kl` for logits and `channels` otherwise.
    channels: score by which those of a group go. shorter: models with fewer tokens to choose
    from, which were timed before.
    """

    outputs: Measure | Literal["auto"] = "auto"
    channels: str = "obs"
    shorter: Sequence[Shorter] = ()


def search_model(
    work: Version,
    kinds: Collection[Kind],
    *,
    method: Method = "rtn",
    tiny: bool = False,
    unpack: bool = True,
    small: bool = True,
    fast: bool = False,
    held: bool = False,
    by: Judged = Judged(),
    size_bytes: float = math.inf,
) -> SearchModel:
    """Everything of the given kinds that can be chosen in a model.

    tiny, unpack: see `mixed.choices`. small: formats that only store fewer bits. held: of these,
    those that a kernel reads as they are stored. fast: 8-bit activations too. size_bytes: of the
    model that is asked for, for formats that trials cannot tell apart.
    """
    prunable = Prunable(work.model)
    builder = Builder(work, prunable)
    if "format" in kinds:
        builder.formats(method, tiny=tiny, unpack=unpack, small=small, fast=fast, held=held)
        builder.fix(size_bytes)
    if "width" in kinds:
        builder.widths(by.channels)
    if "branch" in kinds:
        builder.branches()
    shorter = builder.tokens(by.shorter) if "token" in kinds else ()
    measure = by.outputs
    if measure == "auto":
        measure = "kl" if are_logits(comparable_outputs(work.model.graph)) else "channels"
    return SearchModel(
        work, prunable, builder.space(), builder.groups, builder.constant, builder.grams, measure,
        builder.sites, builder.gains, tuple(shorter),
    )  # fmt: skip
