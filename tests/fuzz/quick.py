"""What costs a run the most and shows nothing is done once, or as seldom as it takes.

Times are measured once, as nothing looks at them. Options of all commands and what is installed
are read once: that is more than half the time of a model that is refused. What is imported is not
searched for garbage.
"""

from __future__ import annotations

import gc
from functools import cache
from typing import Any


def quicken() -> None:
    import typer

    from lwqc.cli import app
    from lwqc.model import extensions
    from lwqc.runtime import served, timer

    timed = timer.time_turns

    def once(sessions: Any, feeds: Any, **_: Any) -> Any:
        return timed(sessions, feeds, seconds=0, least=1)

    for module in (timer, served):
        module.time_turns = once  # type: ignore[attr-defined, assignment]
    extensions.entry_points = cache(extensions.entry_points)  # type: ignore[attr-defined]
    typer.main.get_command = cache(typer.main.get_command)
    typer.main.get_command(app)
    gc.freeze()
