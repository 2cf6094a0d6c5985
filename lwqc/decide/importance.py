"""Layer importance per Layer-Wise Quantization (arXiv 2406.17415), spread over sites."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from lwqc.compile.version import Version
from lwqc.decide.scores.branches.similarity import branch_effects
from lwqc.decide.scores.position import wants_more_bits
from lwqc.decide.scores.zero_deviation import zd
from lwqc.graph.branches import Branch, residual_branches
from lwqc.runtime.session import statistics_session


def layer_importance(work: Version, score: Literal["lim", "zd", "position"]) -> dict[str, float]:
    """Importance of each site; higher is more important.

    lim: minus the mean cosine between input and output of the residual branch that holds the site
        (one forward pass over the data). Sites outside any branch get no value.
    zd: minus the share of outstanding weights of the site itself (no data).
    position: 1 for the last site of every residual branch that `wants_more_bits`, 0 for the others.
    """
    if score == "zd":
        return {s.name: -zd(np.asarray(work.weights.weight(s.name))) for s in work.analysis.sites}
    branches = residual_branches(work.model.graph)
    if score == "position":
        return _by_position(work, branches)
    effects = branch_effects(
        work.model, {b.name: [b] for b in branches}, work.job.data.fit, statistics_session
    )
    inside = {node: branch.name for branch in branches for node in branch.nodes}
    return {
        site.name: effects[inside[site.uses[0].node]].lim
        for site in work.analysis.sites
        if site.uses[0].node in inside
    }


def _by_position(work: Version, branches: Sequence[Branch]) -> dict[str, float]:
    result = dict.fromkeys((s.name for s in work.analysis.sites), 0.0)
    inside = [[s.name for s in work.analysis.sites if s.uses[0].node in b.nodes] for b in branches]
    filled = [names for names in inside if names]
    for i, names in enumerate(filled):
        if wants_more_bits(i // 2, len(filled) // 2):  # attention and MLP make one layer
            result[names[-1]] = 1.0
    return result
