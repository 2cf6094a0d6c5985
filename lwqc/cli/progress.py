"""The line that tells how far a command is, from its first moment to its result."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from lwqc.cli.telling import is_quiet, is_verbose, plain_lines
from lwqc.model.journey import Journey
from lwqc.plans.options import Progress

_shown: list[tuple[ExitStack, Progress | None]] = []  # one at most


@contextmanager
def progress_bars() -> Iterator[Progress | None]:
    """One line about the whole on stderr; lines of text where that is no terminal.

    It is drawn at once. Inside of another one it is that one.
    """
    if _shown:
        yield _shown[0][1]
        return
    with ExitStack() as stack:
        report = _begun(stack)
        _shown.append((stack, report))
        try:
            yield report
        finally:
            _shown.clear()


def at(stage: str, done: int = 0, total: int = 1) -> None:
    """Say where the command is."""
    for _, report in _shown:
        if report is not None:
            report(stage, done, total)


def end_progress() -> None:
    """Nothing is left of the line: results come, which are as long as they are."""
    for stack, _ in _shown:
        stack.close()


def _begun(stack: ExitStack) -> Progress | None:
    if is_quiet():
        return None
    journey = Journey()
    if not sys.stderr.isatty():
        return plain_lines(journey, verbose=is_verbose())
    from lwqc.cli.report.console import Console, progress_line

    begun = time.monotonic()

    def now() -> float:
        return time.monotonic() - begun

    console = Console(stderr=True)
    # Of its own: converters put another file in the place of stderr for a while.
    own = os.fdopen(
        os.dup(sys.stderr.fileno()), "w", encoding=sys.stderr.encoding, errors="replace"
    )
    console.file = stack.enter_context(own)
    line = progress_line(console, lambda: journey.share(now()), lambda: journey.words(now()))
    stack.enter_context(line)
    return lambda stage, done, total: journey.report(stage, done, total, now())
