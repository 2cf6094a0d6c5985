"""Packages that only some data needs."""

from __future__ import annotations

import importlib
from typing import Any

from lwqc.errors import InputError


def needed(module: str, what: str, extra: str = "data") -> Any:
    """A module of a package of an extra. Raises InputError that says how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise InputError(f"{what} need {package}: pip install lwqc[{extra}]") from error
