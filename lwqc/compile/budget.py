"""What a budget is: something that a bound of `lwqc.plans.options.Budgets` is about.

A search knows more of them than what compiles and reports has to know, so they are defined there,
see `lwqc.decide.budgets`, and whoever opens a job makes them known here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import onnx_ir as ir

from lwqc.compile.job import Job
from lwqc.compile.result import Report
from lwqc.compile.version import Version
from lwqc.plans.bounds import Amount
from lwqc.plans.goals import Goals, Outcome


@dataclass(frozen=True)
class Reached:
    """What is known of a result. counted: by `Budget.counted`, where the bound was given."""

    work: Version
    model: ir.Model
    report: Report
    counted: float | None = None


class Budget(ABC):
    """What is bounded.

    option: of `Goals`. name, unit: in outcomes and reports. needs_search: only searches that remove
    channels or layers can keep it. weighs_file: whether `weigh` measures the written file, and the
    report says so.
    """

    option: ClassVar[str]
    name: ClassVar[str]
    unit: ClassVar[str]
    needs_search: ClassVar[bool] = False
    weighs_file: ClassVar[bool] = False

    @property
    def flag(self) -> str:
        """The option on the command line."""
        return f"--{self.option.replace('_', '-')}"

    def unmeasured(self, job: Job) -> str:
        """What messages say behind the option where it cannot be measured here, or ""."""
        return ""

    def counted(self, work: Version, model: ir.Model) -> float | None:
        """Of a result before formats were applied; None for what is measured of the file."""
        return None

    def weigh(self, work: Version, file: Path) -> tuple[float, float] | None:
        """Bytes of the original and of a written file."""
        return None

    @abstractmethod
    def outcomes(self, bound: Amount, reached: Reached) -> Sequence[Outcome]:
        """The bound and what was reached; nothing where that was not measured."""


_KNOWN: dict[str, Budget] = {}  # by option


def register(budget: Budget) -> None:
    """Make a budget known."""
    _KNOWN[budget.option] = budget


def find_budget(option: str) -> Any:
    """The budget of an option; searches know it as a `lwqc.decide.search.bounded.Bounded`."""
    return _KNOWN[option]


def asked(goals: Goals) -> Iterator[tuple[Budget, Amount]]:
    """What is bounded, and by how much."""
    for option, bound in goals.bounds.items():
        yield find_budget(option), bound


def counted(goals: Goals, work: Version, model: ir.Model) -> dict[str, float]:
    """By option: what is counted of a result before formats were applied."""
    found = {budget.option: budget.counted(work, model) for budget, _ in asked(goals)}
    return {option: value for option, value in found.items() if value is not None}


def weighed(
    goals: Goals, work: Version, file: Path | None, *, unasked: bool = False
) -> dict[str, Any]:
    """By name: what budgets weigh of a file, (original, result); None where that is not asked.

    unasked: also what no bound is about, where it can be measured here.
    """
    return {
        budget.name: budget.weigh(work, file)
        if file and (option in goals.bounds or (unasked and not budget.unmeasured(work.job)))
        else None
        for option, budget in _KNOWN.items()
        if budget.weighs_file
    }
