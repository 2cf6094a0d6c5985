"""What a search knows of a budget: how it is predicted of a candidate, and what it really is."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from lwqc.compile.budget import Budget, asked, find_budget
from lwqc.compile.compressed import Compressed
from lwqc.compile.version import Version
from lwqc.decide.search.limits import Limits
from lwqc.decide.search.log import SearchLog
from lwqc.decide.search.search_model import SearchModel
from lwqc.decide.search.space import Kind
from lwqc.errors import InputError
from lwqc.plans.bounds import Amount
from lwqc.plans.goals import BOUNDS, Goals


class Bounded(Budget):
    """A budget that searches keep.

    cost: its name in what candidates cost; budgets may share one. noisy: it is measured by running
    a model, not counted. as_given: it is counted less well once operators are merged. shortens:
    fewer tokens are a way to keep it. kinds: of items that are searched under it, None for all.
    as_share: option that bounds the cost by a share of the original, where its own does not. scale,
    short: unit in notes, and its name.
    """

    cost: ClassVar[str]
    noisy: ClassVar[bool] = False
    as_given: ClassVar[bool] = False
    shortens: ClassVar[bool] = False
    kinds: ClassVar[tuple[Kind, ...] | None] = None
    as_share: ClassVar[str] = ""
    scale: ClassVar[float] = 1.0
    short: ClassVar[str] = ""

    @abstractmethod
    def reference(self, work: Version, log: SearchLog) -> float:
        """Of the original."""

    def limit(self, work: Version, bound: Amount, log: SearchLog) -> float:
        """Upper bound of the cost. Raises InputError for a share of nothing."""
        found = bound.resolve(self.reference(work, log))
        if found <= 0:
            raise InputError(f"{work.name}: {self.name}: the original takes none at these sizes")
        return found

    def choices(self, work: Version, limits: Limits) -> Mapping[str, Any]:
        """Options of `search_model` that it asks for."""
        return {}

    def forms(self, work: Version, goals: Goals, limits: Limits) -> Mapping[str, bool] | None:
        """Which formats there are, as options of `mixed.choices`; None leaves it to others."""
        return None

    def prepare(self, found: SearchModel, log: SearchLog) -> None:
        """Make the space predict it."""
        return

    @abstractmethod
    def real(self, name: str, done: Compressed, log: SearchLog) -> float:
        """Of an executed candidate. name: of what was measured, in the log."""


def bounded(goals: Goals) -> list[tuple[Bounded, Amount]]:
    """What is bounded, and by how much."""
    return [(find_budget(budget.option), bound) for budget, bound in asked(goals)]


def every() -> list[Bounded]:
    """Everything that can be bounded."""
    return [find_budget(option) for option in BOUNDS]


def by_cost(budgets: Iterable[Bounded]) -> dict[str, Bounded]:
    """For each cost one budget that tells what it really is."""
    found: dict[str, Bounded] = {}
    for budget in budgets:
        found.setdefault(budget.cost, budget)
    return found
