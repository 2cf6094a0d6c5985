"""Scores of branches from one forward pass over the data."""

from __future__ import annotations

from collections.abc import Mapping

from lwqc.decide.scores.branches.score import BranchFacts, BranchScore
from lwqc.decide.scores.branches.similarity import branch_effects, void_rates
from lwqc.runtime.stats.branch_effect import EffectSums


def _effects(facts: BranchFacts) -> Mapping[str, EffectSums]:
    return branch_effects(facts.model, facts.units, facts.data, facts.run)


def _lim(facts: BranchFacts) -> dict[str, float]:
    return {name: effect.lim for name, effect in _effects(facts).items()}


def _angular(facts: BranchFacts) -> dict[str, float]:
    return {name: effect.angular for name, effect in _effects(facts).items()}


def _norm_ratio(facts: BranchFacts) -> dict[str, float]:
    return {name: effect.norm_ratio for name, effect in _effects(facts).items()}


def _void(facts: BranchFacts) -> dict[str, float]:
    rates = void_rates(facts.model, facts.units, facts.data, facts.run)
    return {name: -rate for name, rate in rates.items()}


SCORES = {
    "similarity": BranchScore(_lim),  # the same order: lim is minus the cosine
    "lim": BranchScore(_lim),
    "angular": BranchScore(_angular),
    "norm-ratio": BranchScore(_norm_ratio),
    "void": BranchScore(_void),
}
