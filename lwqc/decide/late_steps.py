"""What is done after everything else: learning by gradients, and codes for caches."""

from __future__ import annotations

from collections.abc import Callable

from lwqc.compile.execute import finished
from lwqc.compile.version import Version
from lwqc.decide.data_free import NOTHING_LEARNED
from lwqc.decide.decided import Decided
from lwqc.errors import InputError
from lwqc.learn.needed import require_torch
from lwqc.plans.recipe import Recipe


def with_late_steps(
    job: Callable[[Version], Decided], recipe: Recipe
) -> Callable[[Version], Decided]:
    """The job, what the recipe learns then, and how the user wants caches to be stored.

    Without data nothing is learned, which is noted. Raises InputError without torch, before the job
    begins.
    """

    def run(work: Version) -> Decided:
        late: dict[str, object] = {}
        if recipe.learn is not None and work.job.data.fit.given:
            require_torch()
            late["learn"] = recipe.learn
        if work.job.kv_cache is not None:
            late["caches"] = work.job.kv_cache
        found = job(work)
        if late:
            made, plan = found.make, found.plan.model_copy(update=late)
            found = Decided(found.work, found.goals, plan, lambda: finished(made(), **late))
        return found.noted(NOTHING_LEARNED) if recipe.learn and "learn" not in late else found

    return run


def check_learning(work: Version, recipe: Recipe) -> None:
    """Raises InputError for a recipe that learns, without data."""
    if recipe.learn is not None and not work.job.data.fit.given:
        raise InputError("codes are learned from data: give --data")
