"""The `lwqc` command.

What computes, and the commands themselves, are imported once signals are handled: whenever one
comes, the command ends with one line.
"""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
import warnings
from typing import TYPE_CHECKING, Any

from lwqc.cli.shown import say
from lwqc.errors import LwqcError, UserCodeError
from lwqc.model import interrupts, user_code

if TYPE_CHECKING:
    import typer

__all__ = ["main"]
# Their warnings are for developers: what users should know is checked, and told in one line.
_LIBRARIES = r"(lwqc|numpy|scipy|onnx|onnx_ir|onnxscript|onnxruntime)(\.|$)"
_COMPLETE = "_LWQC_COMPLETE"  # what typer's completion asks by
_INTERRUPTED = 128 + signal.SIGINT


def main() -> None:
    """Entry point: one line per error, and the exit codes of the design."""
    try:
        interrupts.handle()
        code, message = _run()
    except (KeyboardInterrupt, interrupts.Terminated):
        code, message = _INTERRUPTED, interrupts.line_of(signal.SIGINT)
    interrupts.over()
    number = interrupts.raised()
    if code in (1, 2, _INTERRUPTED) and number is not None:
        code, message = 128 + number, interrupts.line_of(number)
    if message:
        say(message)
    sys.exit(code)


def _run() -> tuple[int, str]:
    """Exit code, and what went wrong."""
    debug = "--debug" in sys.argv
    if not debug:
        warnings.filterwarnings("ignore", module=_LIBRARIES)
        for name in ("onnx_ir", "onnxscript"):
            logging.getLogger(name).setLevel(logging.ERROR)
    user_code.allow()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not every encoding has what names hold
            stream.reconfigure(errors="backslashreplace")
    try:
        return _command(), ""
    except LwqcError as error:
        if debug:
            raise
        hint = "; --debug shows the traceback" if isinstance(error, UserCodeError) else ""
        return error.exit_code, f"{error}{hint}"
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1, ""
    except MemoryError:
        return 1, "out of memory"
    except Exception as error:
        if type(error).__module__.startswith(("click", "typer")):
            return 2, _usage(error) if str(error) else ""  # which was the help
        if debug:
            raise
        return 1, f"internal error: {error!r}; run again with --debug"


def _command() -> int:
    """Run what the arguments say. Not by `app()`, which makes an empty line of Ctrl-C."""
    import typer

    try:
        command = typer.main.get_command(_app())
        if _COMPLETE in os.environ:  # a shell asks; it ends here
            command.main(prog_name="lwqc")
        with command.make_context("lwqc", sys.argv[1:]) as context:
            command.invoke(context)
    except typer.Exit as done:
        return int(done.exit_code)
    except typer.Abort:
        return 1
    sys.stdout.flush()
    return 0


def _app() -> typer.Typer:
    from lwqc.cli import (  # noqa: F401
        building,
        comparing,
        compressing,
        fitting,
        looking,
        optimizing,
        planning,
        running,
        verifying,
        vocabulary,
    )

    return running.app


def __getattr__(name: str) -> Any:
    """`app`, with all commands, when it is asked for."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _app()


def _usage(error: Any) -> str:
    message = error.format_message() if hasattr(error, "format_message") else str(error)
    return f"{message} (see lwqc --help)"
