"""Consoles: what every table and every line is printed by."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

from rich.console import Console as RichConsole
from rich.console import RenderableType
from rich.progress import Progress, ProgressColumn, SpinnerColumn, Task
from rich.progress_bar import ProgressBar
from rich.text import Text

from lwqc.cli.telling import width
from lwqc.model.printable import shown

_UNBOUNDED = 1 << 20  # columns
_BAR = 24


class Console(RichConsole):
    """A console for which text is text: no markup, no emoji names, nothing that a terminal obeys.

    Line feeds are escaped too: a line is printed by a call of its own. In a file or a pipe lines
    are as long as they need to be, unless `--width` or `$COLUMNS` says how wide it is.
    """

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False)
        if (asked := width()) is not None:
            self.width = asked
        elif not self.is_terminal and "COLUMNS" not in os.environ:
            self.width = _UNBOUNDED

    def render_str(self, text: str, **options: Any) -> Text:
        """What rich makes of any string: of cells, titles, labels and lines."""
        return super().render_str(shown(text), **(options | {"markup": False, "emoji": False}))


class _Told(ProgressColumn):
    """A column that says something anew whenever the line is drawn."""

    max_refresh = None

    def __init__(self, tell: Callable[[], RenderableType]) -> None:
        self._tell = tell
        super().__init__()

    def render(self, task: Task) -> RenderableType:
        """What it says now."""
        return self._tell()


def progress_line(
    console: Console, share: Callable[[], float], words: Callable[[], str]
) -> Progress:
    """One line that is drawn ten times a second until it is over, when nothing is left of it.

    share: of the whole that is done. words: about it, which are no markup either. What is printed
    meanwhile stays on its own stream.
    """
    both = sys.stdout.isatty()
    bar = Progress(
        SpinnerColumn(),
        _Told(lambda: Text(f"{share():4.0%}")),
        _Told(lambda: ProgressBar(total=1.0, completed=share(), width=_BAR)),
        _Told(lambda: Text(shown(words()), overflow="ellipsis", no_wrap=True)),
        console=console,
        transient=True,
        redirect_stdout=both,
        redirect_stderr=True,
    )
    bar.add_task("")
    return bar
