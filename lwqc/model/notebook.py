"""A line that tells in a notebook how far a call is, in place of a terminal's."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from importlib import import_module
from typing import Any

from lwqc.model.journey import Journey
from lwqc.model.printable import shown

_SECONDS = 0.5  # between two drawings


class NotebookLine:
    """One output of a cell, drawn anew twice a second until it is over; then it is empty.

    Called with stages as any progress callback.
    """

    def __init__(self, display: Any) -> None:
        self._journey = Journey()
        self._begun = time.monotonic()
        self._over = threading.Event()
        self._handle = display(self._drawn(), raw=True, display_id=True)
        self._thread = threading.Thread(target=self._keep, daemon=True)
        self._thread.start()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """What is being done."""
        self._journey.report(stage, done, total, self._now())

    def end(self) -> None:
        """Nothing is left of it."""
        self._over.set()
        self._thread.join()
        self._handle.update({"text/plain": "", "text/html": ""}, raw=True)

    def _now(self) -> float:
        return time.monotonic() - self._begun

    def _keep(self) -> None:
        while not self._over.wait(_SECONDS):
            self._handle.update(self._drawn(), raw=True)

    def _drawn(self) -> dict[str, str]:
        now = self._now()
        share, words = self._journey.share(now), shown(self._journey.words(now))
        bar = f'<progress max="1" value="{share:.3f}"></progress>'
        return {
            "text/plain": f"{share:4.0%}  {words}",
            "text/html": f"<div>{bar} {share:.0%} {escape(words)}</div>",
        }


@contextmanager
def notebook_line() -> Iterator[NotebookLine | None]:
    """A line below the cell that runs; None outside of notebooks, where nothing is shown."""
    if not _in_notebook():
        yield None
        return
    line = NotebookLine(import_module("IPython.display").display)
    try:
        yield line
    finally:
        line.end()


def _in_notebook() -> bool:
    """Whether cells of a kernel run: a shell in a terminal has none."""
    package: Any = sys.modules.get("IPython")
    shell = None if package is None else package.get_ipython()
    return getattr(shell, "kernel", None) is not None
