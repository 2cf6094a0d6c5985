"""Any job on a model that one step of its plan has changed before."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TypeVar

from lwqc.compile.compressed import Compressed
from lwqc.compile.version import Version
from lwqc.decide.decided import Decided

Job = Callable[[Version], Decided]
Entry = TypeVar("Entry")


def after_step(
    field: str,
    choose: Callable[[Version], tuple[Sequence[Entry], Sequence[str]]],
    apply: Callable[[Version, Sequence[Entry]], Version],
    job: Job,
) -> Job:
    """The job on what a step makes of a model, as a plan for the model before.

    field: of the plan. choose: the step's entries and notes for readers. apply: does it.
    """

    def run(work: Version) -> Decided:
        work.job.whole(f"the plan's step {field}")
        entries, notes = choose(work)
        chosen = {field: tuple(entries)}
        found = job(apply(work, entries))

        def make() -> Compressed:
            done = found.make()
            whole = done.decisions.model_copy(update=chosen)
            return dataclasses.replace(done, decisions=whole)

        plan = found.plan.model_copy(update=chosen)
        return Decided(found.work, found.goals, plan, make).noted(*notes)

    return run
