"""What each residual branch does on data: for people who look at a model before they cut it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice

import onnx_ir as ir

from lwqc.compile.gated_model import GatedModel
from lwqc.decide.drop_layers import gated_session
from lwqc.decide.scores.branches.similarity import branch_effects, void_rates
from lwqc.decide.scores.branches.skip_effect import SkipEffects, skip_effects
from lwqc.graph.branch_kinds import BranchTree
from lwqc.runtime.data import Dataset
from lwqc.runtime.session import statistics_session
from lwqc.runtime.stats.branch_effect import EffectSums

_BATCHES = 2  # that every branch is skipped on


@dataclass(frozen=True)
class BranchDiagnostics:
    """By branch name: effect on the stream and void rate; and what skipping each one changes."""

    effects: Mapping[str, EffectSums]
    voids: Mapping[str, float]
    skips: SkipEffects


def diagnose_branches(model: ir.Model, tree: BranchTree, data: Dataset) -> BranchDiagnostics:
    """Two passes over the data, and one run per branch on its first batches.

    Raises InputError when the model has no branch.
    """
    branches = [b.branch for b in tree.branches]
    units = {b.name: [b] for b in branches}
    values = [b.branch.name or "" for b in branches]
    gated = GatedModel(model, units, gated_session, watched=values)
    return BranchDiagnostics(
        effects=branch_effects(model, units, data, statistics_session),
        voids=void_rates(model, units, data, statistics_session),
        skips=skip_effects(branches, gated.without, islice(data, _BATCHES)),
    )
