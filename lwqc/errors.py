"""The errors that lwqc raises on purpose; each message is one line that says what to do."""

from __future__ import annotations

from typing import ClassVar


class LwqcError(Exception):
    """Base of all errors of lwqc.

    The message is one line that names the file, tensor or node, what was expected and what was
    found. `exit_code` is what the command line ends with.
    """

    exit_code: ClassVar[int] = 1


class InputError(LwqcError):
    """Bad usage or bad input: nothing was written."""

    exit_code: ClassVar[int] = 2


class UserCodeError(InputError):
    """Code of the user's own that failed: a pass, a score, a metric, a function that makes data."""


class SessionError(InputError):
    """A model that ONNX Runtime does not load or run, or dies of."""


class UnsoundResult(LwqcError):
    """A result that does not hold what the original promises: nothing was written."""


class ConstraintError(LwqcError):
    """The work is finished and the best model saved, but a constraint is not met."""

    exit_code: ClassVar[int] = 3
