"""Plans that are tried on the whole: timed first, and asked what they lose in order of speed.

A metric can take longer than everything else, and most plans are too slow to matter.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count

from lwqc.backends.target import Lowered
from lwqc.compile.candidates import Candidate, evaluate, known_drop, measured
from lwqc.compile.version import Version
from lwqc.decide import planning
from lwqc.decide.base import Base
from lwqc.decide.islands import islands
from lwqc.decide.safest import with_room
from lwqc.decide.site_order import by_output_error, smallest
from lwqc.errors import SessionError
from lwqc.plans.plan import Plan
from lwqc.plans.recipe import Recipe
from lwqc.quant.methods import DATA_METHODS
from lwqc.runtime.served import no_slower, overall, relative_times
from lwqc.runtime.session import Session

GLANCE = 0.3  # seconds of timing per model and shape, at first
_KEPT = 2  # of a plan's variants: each is a session with all weights


@dataclass(frozen=True)
class Trial:
    """A plan that was lowered and loaded.

    time: of a run over that of the original; where the target is not timed here, its place in the
    order in which plans are tried. mend: whether it is made to lose less where it loses too much.
    candidate: with what it loses, once that was asked.
    """

    base: Base
    plan: Plan
    lowered: Lowered
    session: Session
    time: float = 0.0
    mend: bool = True
    candidate: Candidate | None = None


@dataclass(frozen=True)
class Trials:
    """How plans are tried. work: the original. limit: the largest drop."""

    work: Version
    limit: float
    recipe: Recipe

    def loaded(self, base: Base, plan: Plan, *, mend: bool = True) -> list[Trial]:
        """A plan as a trial, or none where nothing of it is left or the runtime does not load it.

        That is a note, too.
        """
        try:
            found = planning.loaded(base.work, plan) if plan.quantize else None
        except SessionError as error:
            self.work.job.give_up(error)
            return []
        return [] if found is None else [Trial(base, *found, mend=mend)]

    def with_fewer_islands(self, trial: Trial) -> list[Trial]:
        """The trial, and with those convolutions in float that are not worth their conversions.

        The fastest of them, which alone is mended.
        """
        work = trial.base.work
        if not (self.work.job.timed and self.work.job.runs_here):
            return [trial]
        fewer = [
            found
            for left in islands(work, trial.plan)
            for found in self.loaded(
                trial.base, planning.weight_only(work, trial.plan, sorted(left)), mend=False
            )
        ]
        if not fewer:
            return [trial]
        kept = self.ranked([trial, *fewer], GLANCE, _KEPT)[:_KEPT]
        return [replace(t, mend=trial.mend and i == 0) for i, t in enumerate(kept)]

    def ranked(
        self, trials: Sequence[Trial], seconds: float, keep: int | None = None
    ) -> list[Trial]:
        """Those that are no slower than the original, the fastest first; `keep` of them matter.

        All, as they come, where the target is not timed here.
        """
        if not self.work.job.timed:
            return [replace(t, time=float(i)) for i, t in enumerate(trials)]
        sessions = [self.work.begun.timed_session, *(t.session for t in trials)]
        relative = relative_times(sessions, self.work.job.data.serve, seconds, keep)[1:]
        timed = [
            replace(trial, time=overall(own))
            for trial, own in zip(trials, relative, strict=True)
            if no_slower(own)
        ]
        return sorted(timed, key=lambda t: t.time)

    def holding(self, ranked: Iterable[Trial], seconds: float) -> Iterator[tuple[Trial, Candidate]]:
        """Of those that were timed, the ones that lose no more than is allowed, the fastest first.

        What one loses is asked no sooner than it is the fastest that is left. One that loses too
        much comes back, where it is mended, with the time that it takes then.
        """
        number = count()
        waiting = [(t.time, next(number), t) for t in ranked]
        heapq.heapify(waiting)
        while waiting:
            _, _, trial = heapq.heappop(waiting)
            if trial.candidate is not None:
                yield trial, trial.candidate
                continue
            for found in self._asked(trial, seconds):
                heapq.heappush(waiting, (found.time, next(number), found))

    def _asked(self, trial: Trial, seconds: float) -> list[Trial]:
        """The trial with what it loses, or what it is mended to; nothing where that is too much.

        Nor where the runtime does not run it, or dies of it: that is a note.
        """
        work = trial.base.work
        try:
            candidate = measured(work, trial.plan, trial.lowered, trial.session)
            session = trial.session
            if trial.mend and self.limit < candidate.drop < math.inf:
                candidate, session = _fitted_better(work, candidate, session, self.recipe)
            if trial.mend and candidate.drop > self.limit:
                candidate, session = _relaxed(work, candidate, session, self.limit)
        except SessionError as error:
            work.job.give_up(error)
            return []
        if candidate.drop > with_room(candidate.plan, self.limit):
            return []
        if session is trial.session:
            return [replace(trial, candidate=candidate)]
        mended = replace(
            trial,
            plan=candidate.plan,
            lowered=candidate.lowered,
            session=session,
            mend=False,
            candidate=candidate,
        )
        if not self.work.job.timed:
            return [mended]
        return self.ranked(self.with_fewer_islands(mended), seconds)


def _fitted_better(
    work: Version, candidate: Candidate, session: Session, recipe: Recipe
) -> tuple[Candidate, Session]:
    """Finer scales, and all codes chosen by the recipe's method, where that loses less.

    At 8 bits it takes most of the error of the weights away, which is all that a detector can bear.
    The method needs real data.
    """
    if work.is_large:
        return candidate, session
    plan = planning.finer(work, candidate.plan)
    if recipe.method in DATA_METHODS and work.job.data.fit.kind == "real":
        plan = planning.with_method(work, plan, recipe.method)
    if plan == candidate.plan:
        return candidate, session
    fitted, loaded = evaluate(work, plan)
    return (fitted, loaded) if fitted.drop < candidate.drop else (candidate, session)


def _relaxed(
    work: Version, candidate: Candidate, session: Session, limit: float
) -> tuple[Candidate, Session]:
    """Leave the activations of the most sensitive sites float until the drop is allowed.

    In the order of what sites cost alone in 8 bits, as few of them as it takes.
    """
    plan = candidate.plan
    integer = [n for n, e in plan.quantize.items() if e.activation != "none"]
    if not integer:
        return candidate, session

    def without(sites: Sequence[str]) -> Plan:
        return planning.finer(work, planning.weight_only(work, plan, sites))

    floating = without(integer)
    known, most = known_drop(work, floating), with_room(floating, limit)
    if known is not None and known > most:
        return candidate, session
    trial, loaded = evaluate(work, floating)
    if trial.drop > most:
        return candidate, session  # without any 8-bit activation it is too much already
    order = by_output_error(work, plan, integer, candidate.drop - limit)
    best = trial, loaded

    def held(count: int) -> bool:
        nonlocal best  # each one that holds leaves fewer sites out than the one before
        trial, loaded = evaluate(work, without(order.sites[:count]))
        if trial.drop <= limit:
            best = trial, loaded
        return trial.drop <= limit

    smallest(1, len(integer), order.expected(limit), held)
    return best
