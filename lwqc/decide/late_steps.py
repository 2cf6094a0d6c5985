"""What is done after everything else: learning by gradients, and codes for caches."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from lwqc.compile.affordable_steps import within
from lwqc.compile.compressed import Compressed
from lwqc.compile.execute import finished
from lwqc.compile.steps.learned import lesson_of
from lwqc.compile.version import Version
from lwqc.decide.data_free import NOTHING_LEARNED
from lwqc.decide.decided import Decided
from lwqc.errors import InputError
from lwqc.learn.needed import require_torch
from lwqc.plans.plan import Learn
from lwqc.plans.recipe import Recipe

_LEAST = 0.25  # of the time that a fit has, however long a search took


def with_late_steps(
    job: Callable[[Version], Decided], recipe: Recipe, seconds: float = math.inf
) -> Callable[[Version], Decided]:
    """The job, what the recipe learns then, and how the user wants caches to be stored.

    seconds: of all of it; what is left then decides how many steps are learned. Without data
    nothing is learned, which is noted. Raises InputError without torch, before the job begins.
    """

    def run(work: Version) -> Decided:
        begin = time.monotonic()
        learn = recipe.learn if work.job.data.fit.given else None
        if learn is not None:
            require_torch()
        found = job(work)
        notes: tuple[str, ...] = () if learn is recipe.learn else (NOTHING_LEARNED,)
        if learn is not None and math.isfinite(seconds):
            done = found.make()
            found = Decided.of(done)
            left = max(seconds - (time.monotonic() - begin), _LEAST * seconds)
            learn = _within(left, done, learn)
            if learn is None:
                notes = (f"nothing was learned: {left:.0f} s are too few for a fit",)
        late = {"learn": learn, "caches": work.job.kv_cache}
        return _finally(found, {n: v for n, v in late.items() if v is not None}).noted(*notes)

    return run


def _within(seconds: float, done: Compressed, learn: Learn) -> Learn | None:
    """What can be learned in that time; None for nothing."""
    return within(seconds, done.model, lesson_of(done.work, done.model), learn)


def _finally(found: Decided, late: dict[str, object]) -> Decided:
    """The same with late steps."""
    if not late:
        return found
    plan = found.plan.model_copy(update=late)
    return Decided(found.work, found.goals, plan, lambda: finished(found.make(), **late))


def check_learning(work: Version, recipe: Recipe) -> None:
    """Raises InputError for a recipe that learns, without data."""
    if recipe.learn is not None and not work.job.data.fit.given:
        raise InputError("codes are learned from data: give --data")
