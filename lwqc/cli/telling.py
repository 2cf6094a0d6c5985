"""How much a command tells beside its result: `-q` nothing, `-v` each stage and each site."""

from __future__ import annotations

import time
from collections.abc import Callable

from lwqc.cli.shown import put

_SECONDS = 3.0  # between lines of one stage
_asked = {"quiet": False, "verbose": False}


def set_quiet(asked: bool) -> None:
    """What the command line says; called for every command."""
    _asked["quiet"] = asked


def set_verbose(asked: bool) -> None:
    """The same for `-v`."""
    _asked["verbose"] = asked


def is_quiet() -> bool:
    """Whether only errors are told, and what machines read."""
    return _asked["quiet"]


def is_verbose() -> bool:
    """Whether everything is."""
    return _asked["verbose"] and not is_quiet()


def stage_lines() -> Callable[[str, int, int], None]:
    """Progress as lines on stderr: each stage when it begins, and where it is from time to time."""
    begun = time.monotonic()
    told: dict[str, float] = {}

    def report(stage: str, done: int, total: int) -> None:
        now = time.monotonic() - begun
        if stage not in told or now - max(told.values()) >= _SECONDS:
            told[stage] = now
            put(f"{now:6.1f} s  {stage}: {done} of {total}", errors=True)

    return report
