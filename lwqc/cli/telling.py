"""How much a command tells beside its result: `-q` nothing, `-v` each stage and each site."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lwqc.cli.hosting import answer, is_hosted
from lwqc.cli.shown import put
from lwqc.errors import InputError
from lwqc.model.journey import Journey

_SECONDS = 3.0  # between lines of one stage
_RARELY = 10.0  # between lines that nobody asked for
_NARROWEST = 20  # columns that a table can be told in
_columns: dict[str, int] = {}
_asked = {"quiet": False, "verbose": False}


def set_quiet(asked: bool) -> None:
    """What the command line says; called for every command. Steps of `lwqc run` do as it does."""
    if not is_hosted():
        _asked["quiet"] = asked


def set_verbose(asked: bool) -> None:
    """The same for `-v`."""
    if not is_hosted():
        _asked["verbose"] = asked


def set_width(columns: int | None) -> None:
    """Columns of tables and lines; None for those of the terminal. Raises InputError."""
    if columns is not None and columns < _NARROWEST:
        raise InputError(f"--width {columns}: expected {_NARROWEST} columns or more")
    if columns is None and is_hosted():
        return
    _columns.clear()
    _columns.update({"asked": columns} if columns is not None else {})


def width() -> int | None:
    """The same; None where nobody asked for any."""
    return _columns.get("asked")


def is_quiet() -> bool:
    """Whether only errors are told, and what machines read."""
    return _asked["quiet"]


def is_verbose() -> bool:
    """Whether everything is."""
    return _asked["verbose"] and not is_quiet()


def tell_report(document: Mapping[str, Any], lines: Sequence[str], *, as_json: bool) -> None:
    """What a command found: as JSON, or in lines for readers; `lwqc run` gets it too."""
    answer(document)
    if as_json:
        print(json.dumps(document, indent=1))
    elif not is_quiet():
        for line in lines:
            put(line)


def plain_lines(journey: Journey, *, verbose: bool) -> Callable[[str, int, int], None]:
    """Progress as lines on stderr, for files and pipes.

    Phases of a command that takes a while, now and then; verbose: each stage when it begins, and
    where it is every few seconds.
    """
    begun = time.monotonic()
    told: dict[str, float] = {}

    def report(stage: str, done: int, total: int) -> None:
        now = time.monotonic() - begun
        journey.report(stage, done, total, now)
        last = max(told.values(), default=0.0)
        due = now - last >= (_SECONDS if verbose else _RARELY)
        if not due and not (verbose and stage not in told):
            return
        told[stage] = now
        where = f"{stage}: {done} of {total}" if verbose else journey.place()
        put(f"{now:6.1f} s  {where}{journey.left(now)}", errors=True)

    return report
