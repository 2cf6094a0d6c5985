"""What a fit by gradients will leave of errors: tried on one candidate for each kind of change.

A layer that is gone can be made up for otherwise than a number that is rounded. One ratio for each
kind is little to know, but it is what decides how a budget is shared out between them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import get_args

from lwqc.compile.compressed import Compressed
from lwqc.compile.fitted import Fitting, fitted
from lwqc.compile.steps.learned import lesson_of
from lwqc.decide.allocators.evolutionary import Candidate
from lwqc.decide.search.limits import Limits
from lwqc.decide.search.space import Kind, SearchSpace
from lwqc.decide.search.start import lowered
from lwqc.plans.plan import Learn

_STEPS = 60  # of a trial
_PART = 0.5  # of what has to be saved, which a kind saves alone in its trial
_LEAST = 0.01  # what is left of an error at least, as trials tell


class Recovered:
    """Errors of a space before and after a fit. ratios: share that is left, by kind."""

    def __init__(self, space: SearchSpace, ratios: Mapping[Kind, float]) -> None:
        """The items of the space have the errors that a fit leaves from now on."""
        self.ratios = ratios
        self._before = replace(space)
        self._after = space
        space.items = tuple(
            replace(item, errors=tuple(e * ratios.get(item.kind, 1.0) for e in item.errors))
            for item in space.items
        )

    def left(self, candidate: Candidate) -> float:
        """Share of a candidate's divergence that is left: the mean over what it is made of."""
        before = self._before.predicted(candidate)
        return self._after.predicted(candidate) / before if before > 0 else 1.0

    @property
    def told(self) -> str:
        """For readers."""
        shares = ", ".join(f"{kind} {share:.2f}" for kind, share in self.ratios.items())
        return f"{_STEPS} steps of a fit leave of the error of one candidate of each kind: {shares}"


def trials(space: SearchSpace, limits: Limits) -> dict[Kind, Candidate]:
    """For each kind of change a candidate that saves half of what has to be saved, by it alone."""
    whole = limits.excess(space.cost(space.top))
    aim = 1 + (1 - _PART) * (whole - 1)
    found: dict[Kind, Candidate] = {}
    for kind in get_args(Kind):
        items = space.of_kind(kind)

        def excess(candidate: Candidate) -> float:
            return limits.excess(space.cost(candidate))

        candidate = lowered(space, space.top, excess, lambda c: excess(c) <= aim, items)
        if candidate != space.top:
            found[kind] = candidate
    return found if len(found) > 1 else {}


def share_left(done: Compressed, learn: Learn) -> float:
    """What a short fit leaves of the error of an executed candidate."""
    lesson = lesson_of(done.work, done.model)
    fitting = Fitting(_STEPS, learn.lr, learn.seed, parts="none")
    found = fitted(done.model, lesson, fitting)
    if not found.loss_before > 0:
        return 1.0
    return max(min(found.loss_after / found.loss_before, 1.0), _LEAST)


def ratios(
    space: SearchSpace, limits: Limits, execute: Callable[[Candidate], Compressed], learn: Learn
) -> dict[Kind, float]:
    """Share of the error that is left, by kind; nothing where there is only one."""
    return {
        kind: share_left(execute(candidate), learn)
        for kind, candidate in trials(space, limits).items()
    }
