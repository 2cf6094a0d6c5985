"""Python callables that a user names on the command line as `module:callable`."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from lwqc.errors import InputError


def load_callable(spec: str) -> Callable[..., Any]:
    """The callable that `spec` names; the current directory is importable.

    Raises InputError in one line that starts with `spec`.
    """
    module_name, colon, name = spec.partition(":")
    if not colon or not module_name or not name:
        raise InputError(f"{spec}: expected module:callable")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # importing runs the user's code
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise InputError(f"{spec}: module {module_name} cannot be imported: {reason}") from error
    found = getattr(module, name, None)
    if found is None:
        raise InputError(f"{spec}: module {module_name} has no attribute {name}")
    if not callable(found):
        raise InputError(f"{spec}: {name} is not callable")
    return found  # type: ignore[no-any-return]
