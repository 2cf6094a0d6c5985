"""Consoles: what every table and every line is printed by."""

from __future__ import annotations

import os
from typing import Any

from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from lwqc.model.printable import shown

_UNBOUNDED = 1 << 20  # columns


class Console(RichConsole):
    """A console for which text is text: no markup, no emoji names, nothing that a terminal obeys.

    Line feeds are escaped too: a line is printed by a call of its own. In a file or a pipe lines
    are as long as they need to be, unless `$COLUMNS` says how wide it is.
    """

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False)
        if not self.is_terminal and "COLUMNS" not in os.environ:
            self.width = _UNBOUNDED

    def render_str(self, text: str, **options: Any) -> Text:
        """What rich makes of any string: of cells, titles, labels and lines."""
        return super().render_str(shown(text), **(options | {"markup": False, "emoji": False}))


def progress(console: Console) -> Progress:
    """Bars whose descriptions are no markup either."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
