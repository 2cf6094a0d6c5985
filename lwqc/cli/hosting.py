"""What a command tells `lwqc run`, which calls it as a step; nothing where a user called it."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any


@dataclass
class Host:
    """The caller of one command.

    check_only: the command is to end where its work would begin, with `OptionsAreSound`. line: the
    command and its arguments. answer: what it found, as `--json` prints it; None until then.
    """

    check_only: bool = False
    line: Sequence[str] = ()
    answer: Any = None


class OptionsAreSound(Exception):
    """Ends a command that was only asked whether its options fit together."""


_HOST: ContextVar[Host | None] = ContextVar("host", default=None)


@contextmanager
def hosted(host: Host) -> Iterator[Host]:
    """The commands called inside of the block tell this host."""
    token = _HOST.set(host)
    try:
        yield host
    finally:
        _HOST.reset(token)


def is_hosted() -> bool:
    """Whether `lwqc run` called the command."""
    return _HOST.get() is not None


def work_begins() -> None:
    """Say that all options were looked at. Raises OptionsAreSound where that was all."""
    host = _HOST.get()
    if host is not None and host.check_only:
        raise OptionsAreSound


def command_line() -> str:
    """What was called, as a user could call it again."""
    host = _HOST.get()
    return shlex.join(["lwqc", *(sys.argv[1:] if host is None else host.line)])


def answer(document: Any) -> None:
    """Say what was found."""
    host = _HOST.get()
    if host is not None:
        host.answer = document
