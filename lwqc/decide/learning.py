"""What a recipe learns by gradients after everything else."""

from __future__ import annotations

from collections.abc import Callable

from lwqc.compile.execute import finished
from lwqc.compile.version import Version
from lwqc.decide.data_free import NOTHING_LEARNED
from lwqc.decide.decided import Decided
from lwqc.errors import InputError
from lwqc.learn.needed import require_torch
from lwqc.plans.recipe import Recipe


def learning(job: Callable[[Version], Decided], recipe: Recipe) -> Callable[[Version], Decided]:
    """The job, and what the recipe learns then; without data nothing, which is noted.

    Raises InputError without torch, before the job begins.
    """
    learn = recipe.learn
    if learn is None:
        return job

    def run(work: Version) -> Decided:
        if not work.job.data.fit.given:
            return job(work).noted(NOTHING_LEARNED)
        require_torch()
        found = job(work)
        plan = found.plan.model_copy(update={"learn": learn})
        return Decided(found.work, found.goals, plan, lambda: finished(found.make(), learn=learn))

    return run


def check_learning(work: Version, recipe: Recipe) -> None:
    """Raises InputError for a recipe that learns, without data."""
    if recipe.learn is not None and not work.job.data.fit.given:
        raise InputError("codes are learned from data: give --data")
