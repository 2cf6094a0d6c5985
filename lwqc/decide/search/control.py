"""How long a search over whole plans runs, and where."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lwqc.decide.allocators.evolutionary import Settings
from lwqc.errors import InputError
from lwqc.plans.options import Effort, Searching

_MOST_PROCESSES = 1024
EFFORTS: Mapping[str, Settings] = {
    "low": Settings(generations=10, offspring=12, survivors=(3,)),
    "medium": Settings(generations=40, offspring=16, survivors=(4, 2)),
    "high": Settings(generations=150, offspring=32, survivors=(8, 3)),
}


@dataclass(frozen=True)
class SearchControl:
    """How to run a search.

    time_limit_s: of the evolution; then it ends with the best so far. log: file of scores, see
    `SearchLog`. resume: go on from it. processes: None where they pay. cluster: a Dask scheduler.
    """

    effort: Effort = "medium"
    time_limit_s: float = math.inf
    log: Path | None = None
    resume: bool = False
    processes: int | None = None
    cluster: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.effort not in EFFORTS:
            raise InputError(f"--effort {self.effort}: expected one of {', '.join(EFFORTS)}")
        if not self.time_limit_s > 0:
            raise InputError(f"--time-limit {self.time_limit_s:g}: expected seconds above 0")
        if self.processes is not None and not 1 <= self.processes <= _MOST_PROCESSES:
            few = "at least 1" if self.processes < 1 else f"at most {_MOST_PROCESSES}"
            raise InputError(f"--workers {self.processes}: expected {few}")


def search_control(
    options: Searching, seed: int = 0, log: Path | None = None, resume: bool = False
) -> SearchControl:
    """How to search, as a caller says it. Raises InputError."""
    limit = options.get("time_limit")
    return SearchControl(
        effort=options.get("effort", "medium"),
        time_limit_s=math.inf if limit is None else limit,
        log=log,
        resume=resume,
        processes=options.get("workers"),
        cluster=options.get("cluster", ""),
        seed=seed,
    )
