"""Layer importance per Layer-Wise Quantization (arXiv 2406.17415), spread over sites."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
import onnx_ir as ir

from lwqc.compile.version import Version
from lwqc.decide.scores.branches.similarity import branch_effects
from lwqc.decide.scores.position import wants_more_bits
from lwqc.decide.scores.zero_deviation import zd
from lwqc.graph.branch_kinds import branch_tree
from lwqc.graph.branches import Branch, residual_branches
from lwqc.runtime.session import statistics_session

LayerScore = Literal["lim", "zd", "position"]


def layer_importance(work: Version, score: LayerScore) -> dict[str, float]:
    """Importance of each site; higher is more important.

    lim: minus the mean cosine between input and output of the residual branch that holds the site
        (one forward pass over the data).
    zd: minus the share of outstanding weights among all those of the block that holds the site (no
        data). In a model without residual branches every site is a layer for itself.
    position: 1 for the last site of every residual branch that `wants_more_bits`, 0 for the others.

    Sites outside any branch have no lim, and no zd where there are branches.
    """
    return _SCORES[score](work)


def _lim(work: Version) -> dict[str, float]:
    units = {b.name: [b] for b in residual_branches(work.model.graph)}
    effects = branch_effects(work.model, units, work.job.data.fit, statistics_session)
    return {
        site: effects[unit].lim for unit, names in sites_of(work, units).items() for site in names
    }


def _zd(work: Version) -> dict[str, float]:
    blocks = branch_tree(work.model.graph).blocks
    units = {block[0].name: [b.branch for b in block] for block in blocks}
    layers = sites_of(work, units) if units else {s.name: [s.name] for s in work.analysis.sites}
    return {
        site: value
        for names in layers.values()
        if names
        for value in [-_pooled_zd(work, names)]
        for site in names
    }


def _pooled_zd(work: Version, names: Sequence[str]) -> float:
    return zd(np.concatenate([np.ravel(np.asarray(work.weights.weight(n))) for n in names]))


def sites_of(work: Version, units: Mapping[str, Sequence[Branch]]) -> dict[str, list[str]]:
    """Names of the sites that each unit holds, in graph order; of any, those first used in it."""
    inside: dict[ir.Node, str] = {
        node: name for name, branches in units.items() for b in branches for node in b.nodes
    }
    found: dict[str, list[str]] = {name: [] for name in units}
    for site in work.analysis.sites:
        if (name := inside.get(site.uses[0].node)) is not None:
            found[name].append(site.name)
    return found


def _position(work: Version) -> dict[str, float]:
    result = dict.fromkeys((s.name for s in work.analysis.sites), 0.0)
    units = {b.name: [b] for b in residual_branches(work.model.graph)}
    filled = [names for names in sites_of(work, units).values() if names]
    for i, names in enumerate(filled):
        if wants_more_bits(i // 2, len(filled) // 2):  # attention and MLP make one layer
            result[names[-1]] = 1.0
    return result


_SCORES: Mapping[LayerScore, Callable[[Version], dict[str, float]]] = {
    "lim": _lim,
    "zd": _zd,
    "position": _position,
}
