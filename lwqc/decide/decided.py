"""What a strategy returns: a plan, and the model that comes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lwqc.compile.compressed import Compressed
from lwqc.compile.stamped import stamped
from lwqc.compile.version import Version
from lwqc.plans.goals import Goals
from lwqc.plans.plan import Plan


@dataclass(frozen=True)
class Decided:
    """A plan that is not stamped yet, the goals it was made for, and how it is carried out.

    make: executes the plan. Where deciding took an executed model, it hands that one out.
    """

    work: Version
    goals: Goals
    plan: Plan
    make: Callable[[], Compressed]

    @classmethod
    def of(cls, done: Compressed) -> Decided:
        """A plan that had to be executed to be decided."""
        return cls(done.work, done.goals, done.decisions, lambda: done)

    @property
    def stamped(self) -> Plan:
        """The plan with what it depends on, as it is written to a file."""
        return stamped(self.work, self.plan, self.goals)

    def noted(self, *notes: str) -> Decided:
        """The same with more notes, in the plan and in what is made of it."""
        if not notes:
            return self
        return Decided(
            self.work, self.goals, self.plan.noted(*notes), lambda: self.make().noted(*notes)
        )
