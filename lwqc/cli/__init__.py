"""The `lwqc` command."""

from __future__ import annotations

import sys
from typing import Any

import typer

from lwqc.cli import compressing, looking
from lwqc.cli.running import app
from lwqc.errors import LwqcError

__all__ = ["app", "compressing", "looking", "main"]


def main() -> None:
    """Entry point: one line per error, and the exit codes of the design."""
    debug = "--debug" in sys.argv
    try:
        code = app(standalone_mode=False)
    except LwqcError as error:
        if debug:
            raise
        _fail(str(error), error.exit_code)
    except (typer.Exit, typer.Abort) as error:
        sys.exit(getattr(error, "exit_code", 1))
    except KeyboardInterrupt:
        _fail("interrupted; nothing was written", 130)
    except MemoryError:
        _fail("out of memory", 1)
    except Exception as error:
        if type(error).__module__.startswith(("click", "typer")):
            _fail(_usage(error), 2)
        if debug:
            raise
        _fail(f"internal error: {error!r}; run again with --debug", 1)
    sys.exit(code if isinstance(code, int) else 0)


def _usage(error: Any) -> str:
    message = error.format_message() if hasattr(error, "format_message") else str(error)
    return f"{message} (see lwqc --help)"


def _fail(message: str, code: int) -> None:
    print(f"lwqc: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)
