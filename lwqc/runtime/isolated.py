"""Models are loaded and run in another process, which may die of them.

What is loaded for the first time and may hit a fault in native code is loaded there first. One
process serves many models.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lwqc.model.child_process import ChildProcess

CHILD = Path(__file__).with_name("isolated_child.py")
SECONDS = 600.0  # for one request; a process that takes longer hangs
Signature = list[tuple[str, str]]  # of the outputs: names and types


class Isolated(ChildProcess):
    """A process that loads one model at a time and runs it. Every request raises SessionError."""

    def __init__(self, seconds: float = SECONDS) -> None:
        """seconds: the longest that one request may take."""
        super().__init__(seconds)

    @property
    def script(self) -> Path:  # type: ignore[override]
        """What runs in the process."""
        return CHILD

    def load(
        self,
        model: str | bytes,
        *,
        optimize: bool,
        flags: Mapping[str, Any],
        entries: Mapping[str, str],
        providers: Sequence[Any],
        most_bytes: int | None = None,
    ) -> Signature:
        """Load a model in place of the last one. The options are those of a session.

        most_bytes: that the process may then take; None for what the machine has.
        """
        source = model if isinstance(model, bytes) else os.path.abspath(model)
        request = (source, optimize, dict(flags), dict(entries), list(providers), most_bytes)
        signature: Signature = self.ask("load", *request)
        return signature

    def run(
        self, feeds: Mapping[str, Any], *, keep: bool = True, seconds: float | None = None
    ) -> list[Any] | None:
        """Run the loaded model. keep: return the outputs, in their order."""
        values: list[Any] | None = self.ask("run", dict(feeds), keep, seconds=seconds)
        return values

    def forget(self) -> None:
        """Let go of the loaded model; the process stays for others."""
        self.ask("forget")


_shared: dict[int, Isolated] = {}


def shared() -> Isolated:
    """The process that candidates are tried in; one for each of ours."""
    if os.getpid() not in _shared:  # also after a fork, as pipes are not for two
        _shared.clear()
        _shared[os.getpid()] = Isolated()
    return _shared[os.getpid()]
