"""What a score for residual branches is, and all of them by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from lwqc.decide.scores.branches.similarity import Units
from lwqc.model.extensions import Registry
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


BRANCH_SCORES = Registry(
    "branch score",
    group="lwqc.scores.branches",
    of=BranchScore,
    package="lwqc.decide.scores.branches",
    attribute="SCORES",
)
TRIALS = ("ablation", "metric", "accept")  # no scores: what is left decides what goes next


def score_names() -> list[str]:
    """What a user may choose: scores by name, and trials."""
    return [*BRANCH_SCORES.names(), *TRIALS]
