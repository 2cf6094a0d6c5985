"""How long a search over whole plans runs, and where."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lwqc.decide.allocators.evolutionary import Settings
from lwqc.errors import InputError
from lwqc.model.extensions import expected
from lwqc.plans.options import Effort

_MOST_PROCESSES = 1024
EFFORTS: Mapping[str, Settings] = {
    "low": Settings(generations=10, offspring=12, survivors=(3,)),
    "medium": Settings(generations=40, offspring=16, survivors=(4, 2)),
    "high": Settings(generations=150, offspring=32, survivors=(8, 3)),
}


@dataclass(frozen=True)
class SearchControl:
    """How to run a search.

    time_limit_s: of the evolution; then it ends with the best so far. recover: half of it is for
    what the recipe learns then, see `lwqc.plans.options.Relearning`. log: file of scores, see
    `SearchLog`. resume: go on from it. processes: None where they pay. cluster: a Dask scheduler.
    """

    effort: Effort = "medium"
    time_limit_s: float = math.inf
    recover: bool = False
    log: Path | None = None
    resume: bool = False
    processes: int | None = None
    cluster: str = ""
    seed: int = 0

    @property
    def whole_s(self) -> float:
        """Seconds of the search and the fit, where there is one that takes what is left."""
        return self.time_limit_s if self.recover else math.inf

    @property
    def before_fit(self) -> SearchControl:
        """The search alone."""
        return replace(self, time_limit_s=self.time_limit_s / 2) if self.recover else self

    def __post_init__(self) -> None:
        if self.effort not in EFFORTS:
            raise InputError(f"--effort {self.effort}: {expected(self.effort, list(EFFORTS))}")
        if not self.time_limit_s > 0:
            raise InputError(f"--time-limit {self.time_limit_s:g}: expected seconds above 0")
        if self.processes is not None and not 1 <= self.processes <= _MOST_PROCESSES:
            few = "at least 1" if self.processes < 1 else f"at most {_MOST_PROCESSES}"
            raise InputError(f"--workers {self.processes}: expected {few}")


def search_control(
    options: Mapping[str, Any], seed: int = 0, log: Path | None = None, resume: bool = False
) -> SearchControl:
    """How to search, as a caller says it by `Searching` and `Relearning`. Raises InputError."""
    limit = options.get("time_limit")
    return SearchControl(
        effort=options.get("effort", "medium"),
        time_limit_s=math.inf if limit is None else limit,
        recover=options.get("recover", False),
        log=log,
        resume=resume,
        processes=options.get("workers"),
        cluster=options.get("cluster", ""),
        seed=seed,
    )
