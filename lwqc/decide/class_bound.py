"""Less is lost on the whole until no class loses too much."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from lwqc.compile.losses import flips_of
from lwqc.compile.version import Version
from lwqc.decide.decided import Decided
from lwqc.plans.bounds import DEFAULT_DROP
from lwqc.plans.goals import Goals

_TRIES = 4


def within_classes(work: Version, goals: Goals, decide: Callable[[Goals], Decided]) -> Decided:
    """The first plan that keeps the bound on classes, else the one whose worst class loses least.

    decide: makes a plan for goals. Each try halves the allowed loss of the whole. It ends where
    that changes nothing, as with recipes that have no such bound; what was reached is an outcome.
    """
    bound = goals.max_class_drop
    assert bound is not None
    limit = DEFAULT_DROP if goals.max_drop is None else goals.max_drop
    tried: list[tuple[float, Decided]] = []
    wanted = goals
    for _ in range(_TRIES):
        found = decide(wanted)
        if tried and found.plan.model_dump(exclude={"notes"}) == tried[-1][1].plan.model_dump(
            exclude={"notes"}
        ):
            break
        done = dataclasses.replace(found.make(), goals=goals)
        flipped = flips_of(work, work.job.load(done.model))
        assert flipped is not None
        tried.append((flipped.worst, Decided.of(done)))
        if flipped.worst <= bound:
            break
        limit /= 2
        wanted = Goals(max_drop=limit, fastest=goals.promising().fastest, max_class_drop=bound)
    best = min(tried, key=lambda one: one[0])[1]
    if len(tried) == 1:
        return best
    losses = ", ".join(f"{100 * loss:.3g} %" for loss, _ in tried)
    return best.noted(f"the worst class lost {losses}: the loss of the whole was bounded more")
