"""What all converters share: quiet, and one line for what fails."""

from __future__ import annotations

import contextlib
import io as text_io
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator

from lwqc.errors import InputError

_STDERR = 2


@contextlib.contextmanager
def converting(what: str) -> Iterator[None]:
    """Run another package's converter. Raises InputError that starts with `what` and `failed`."""
    try:
        with quiet():
            yield
    except (Exception, SystemExit) as error:
        raise InputError(f"{what} failed: {first_line(error)}") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the converters' progress texts, warnings and tracebacks off our output."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)  # torch's loggers have levels and handlers of their own
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(text_io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


@contextlib.contextmanager
def native_quiet() -> Iterator[None]:
    """Keep what compiled code writes off stderr, as TensorFlow's greetings; errors are raised."""
    sys.stderr.flush()
    kept, nothing = os.dup(_STDERR), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, _STDERR)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, _STDERR)
        os.close(kept)
        os.close(nothing)


def first_line(error: BaseException) -> str:
    """First line of the error that started it all: the exporter wraps it in advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return re.sub(r"\x1b\[[0-9;]*m", "", lines[0] if lines else repr(error))[:300]
