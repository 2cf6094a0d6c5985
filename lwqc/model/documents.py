"""Small text files that users and earlier runs write: plans, recipes, logs, caches, options.

They come from strangers as models do: only regular files are read, and of numbers only those that
a machine has. Duplicate keys are refused, of which parsers take the last.
"""

from __future__ import annotations

import json
import math
import os
import stat
import tomllib
from typing import Any, NoReturn

from lwqc.errors import InputError

MOST_BYTES = 1 << 30
LARGEST = 2**63 - 1
_DIGITS = 19
_SHOWN = 24  # characters of a number, in messages


def read_text(path: str | os.PathLike[str]) -> str:
    """The text of a regular file in UTF-8. Raises InputError without the name of the file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise InputError("is not a regular file")
            if status.st_size > MOST_BYTES:
                raise InputError(f"{status.st_size} bytes are more than {MOST_BYTES}")
            return file.read().decode()
    except UnicodeDecodeError as error:
        raise InputError("is not a text file in UTF-8") from error
    except (OSError, ValueError) as error:  # a name with a zero byte
        raise InputError(getattr(error, "strerror", None) or str(error)) from error


def parse_json(text: str, *, infinite: bool = False) -> Any:
    """A JSON document; infinite: Infinity and NaN are allowed. Raises InputError, of one line."""
    try:
        return json.loads(
            text,
            parse_int=_whole,
            parse_float=float if infinite else _real,
            parse_constant=float if infinite else _no_number,
            object_pairs_hook=_object,
        )
    except RecursionError as error:
        raise InputError("is nested too deep") from error
    except ValueError as error:
        raise InputError(str(error)) from error


def parse_toml(text: str) -> dict[str, Any]:
    """A TOML document. Raises InputError, of one line."""
    try:
        document = tomllib.loads(text, parse_float=_real)
        _check_whole(document)
    except RecursionError as error:
        raise InputError("is nested too deep") from error
    except ValueError as error:
        raise InputError(str(error)) from error
    return document


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} is given twice")
    return found


def _whole(text: str) -> int:
    if len(text.lstrip("-")) > _DIGITS or abs(int(text)) > LARGEST:
        raise ValueError(f"{text[:_SHOWN]} is beyond what 64 bits hold")
    return int(text)


def _real(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:_SHOWN]} is not a finite number")
    return number


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a finite number")


def _check_whole(document: Any) -> None:
    """Of TOML, whose parser has no hook for whole numbers."""
    if isinstance(document, dict):
        document = list(document.values())
    if isinstance(document, list):
        for part in document:
            _check_whole(part)
    elif isinstance(document, int) and abs(document) > LARGEST:
        raise ValueError("a whole number is beyond what 64 bits hold")
