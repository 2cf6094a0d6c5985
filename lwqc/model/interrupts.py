"""Signals that end a command: each is one line on stderr and the exit code 128 + its number.

A handler raises an exception in the main thread, so that everything that was begun is cleaned up.
Two things stand in the way of that. Native code returns late: a thread that the system wakes at
once ends the process where the main thread does not react. And an exception inside a destructor
is lost: it is raised again.
"""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

PATIENCE_S = 5.0  # for native code to return, before the process is ended
_AGAIN_S = 0.05
_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")
NUMBERS = tuple(int(getattr(signal, name)) for name in _NAMES if hasattr(signal, name))
_noticed = threading.Event()
_last_wishes: list[Callable[[], None]] = []
_state: dict[str, Any] = {"watched": False, "over": False, "raised": None}


class Terminated(BaseException):
    """SIGTERM or SIGHUP; its argument is the number."""


class Interrupted(KeyboardInterrupt):
    """SIGINT. Python (3.11 to 3.14) ends by the signal itself where a plain KeyboardInterrupt
    left an `eval` or `exec`, also if it was caught afterwards.
    """


def raised() -> int | None:
    """The signal that was raised last, whatever became of its exception; None where there is none.

    Extension modules that are being imported make an ImportError of it.
    """
    number: int | None = _state["raised"]
    return number


def taken() -> None:
    """The signal that was raised is dealt with, and the command goes on."""
    _state["raised"] = None


def line_of(number: int) -> str:
    """What the user is told."""
    how = "interrupted" if number == signal.SIGINT else f"ended by {signal.Signals(number).name}"
    return f"{how}; every file is as before or complete"


def handle() -> None:
    """Handle the signals from now on, in this process for good; those that are ignored stay so."""
    _state.update(over=False, raised=None)
    if threading.current_thread() is not threading.main_thread():
        return
    for number in NUMBERS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _raise)
    if not _state["watched"] and os.name == "posix":
        _state["watched"] = True
        _watch()


def over() -> None:
    """The command is done, and what comes now changes nothing any more."""
    _state["over"] = True


def before_the_end(wish: Callable[[], None]) -> None:
    """Something to do before a process ends whose main thread does not react."""
    _last_wishes.append(wish)


@contextmanager
def held() -> Iterator[None]:
    """Signals wait until the block has ended. In other threads nothing is done."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[int] = []

    def keep(number: int, frame: object) -> None:
        _noticed.set()
        caught.append(number)

    known = {number: signal.getsignal(number) for number in NUMBERS}
    before = {n: h for n, h in known.items() if h not in (None, signal.SIG_IGN)}
    try:
        for number in before:
            signal.signal(number, keep)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if caught:
            signal.raise_signal(caught[0])


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM is raised as an exception in the block, and does its default work after it."""
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _raise)
    try:
        yield
    except Terminated as stop:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.raise_signal(stop.args[0])
        raise
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _raise(number: int, frame: object) -> None:
    _noticed.set()
    if _state["over"]:
        return
    _state["raised"] = number
    raise Interrupted if number == signal.SIGINT else Terminated(number)


def _watch() -> None:
    """Be woken by signals in a thread of its own, and look after exceptions that are lost."""
    heard, told = os.pipe()
    os.set_blocking(told, False)
    signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    threading.Thread(target=_listen, args=(heard,), daemon=True, name="lwqc-signals").start()
    usual = sys.unraisablehook

    def again(lost: Any) -> None:
        if isinstance(lost.exc_value, (Interrupted, Terminated)):
            number = raised() or int(signal.SIGINT)
            threading.Timer(_AGAIN_S, _thread.interrupt_main, (number,)).start()
        else:
            usual(lost)

    sys.unraisablehook = again


def _listen(heard: int) -> None:
    while True:
        number = os.read(heard, 1)[0]
        if number not in NUMBERS:
            continue
        if not _noticed.wait(PATIENCE_S) and not _state["over"]:
            for wish in _last_wishes:
                wish()
            os.write(2, f"lwqc: {line_of(number)}\n".encode())
            os._exit(128 + number)
        _noticed.clear()
