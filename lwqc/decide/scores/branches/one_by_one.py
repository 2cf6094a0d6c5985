"""Scores of branches for themselves: what each alone changes at the outputs, or chance."""

from __future__ import annotations

import numpy as np

from lwqc.decide.scores.branches.score import BranchFacts, BranchScore


def _left_out(facts: BranchFacts) -> dict[str, float]:
    return {name: facts.without(name) for name in facts.units}


def _random(facts: BranchFacts) -> dict[str, float]:
    order = np.random.default_rng(facts.seed).permutation(len(facts.units))
    return {name: float(place) for name, place in zip(facts.units, order, strict=True)}


SCORES = {"ablation-once": BranchScore(_left_out), "random": BranchScore(_random)}
