"""What a score for residual branches is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from lwqc.decide.scores.branches.similarity import Units
from lwqc.model.extensions import BRANCH_SCORES
from lwqc.runtime.stats.collector import Feeds, RunnerFactory


@dataclass(frozen=True)
class BranchFacts:
    """What a score may look at, of all units that could go: single branches or whole blocks.

    model: with all of them. units: the branches of each by the name of its first one, in graph
    order. run: makes a function from feeds to outputs out of a model. without: divergence of the
    outputs when one unit is left out. seed: of what is drawn at random.
    """

    model: ir.Model
    units: Units
    data: Iterable[Feeds]
    run: RunnerFactory
    without: Callable[[str], float]
    seed: int = 0


@dataclass(frozen=True)
class BranchScore:
    """A criterion by which branches go.

    importance: of every unit by name; the lowest goes first.
    """

    importance: Callable[[BranchFacts], Mapping[str, float]]


def branch_score(name: str) -> BranchScore:
    """The score of that name. Raises InputError."""
    found: BranchScore = BRANCH_SCORES.find(name)
    return found
