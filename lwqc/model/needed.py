"""Packages that only some models and some data need."""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from typing import Any

from lwqc.errors import InputError


def needed(module: str, what: str, extra: str = "data") -> Any:
    """A module of a package of an extra. what: needs it, in the plural.

    Raises InputError that says how to install it.
    """
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ImportError as error:
        if find_spec(package) is not None:
            reason = " ".join(str(error).split())[:200]
            raise InputError(
                f"{what} need {package}, which cannot be imported: {reason}"
            ) from error
        raise InputError(f"{what} need {package}: pip install lwqc[{extra}]") from error
