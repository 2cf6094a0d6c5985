"""Options that are written as `name=value`, read into what Python takes."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from numbers import Real
from pathlib import Path

from lwqc.errors import InputError
from lwqc.model.documents import read_text
from lwqc.model.numerals import real, share, whole
from lwqc.plans.bounds import BYTES, Bound

_LARGEST_SIZE = 2**31 - 1
_LARGEST_ID = 2**24 - 1


def parse_shapes(texts: Sequence[str] | None) -> list[dict[str, int]]:
    """Sizes of dynamic dimensions from `batch=8,seq=128`, one set for each text.

    Raises InputError.
    """
    return [dims for text in texts or () if (dims := _parse_dims(text))]


def _parse_dims(text: str) -> dict[str, int]:
    dims: dict[str, int] = {}
    for part in filter(None, text.split(",")):
        name, _, size = part.partition("=")
        try:
            dims[name.strip()] = whole(size)
        except ValueError as error:
            raise InputError(f"--shape {part[:80]!r}: expected name=size") from error
        if not name.strip() or dims[name.strip()] > _LARGEST_SIZE:
            raise InputError(
                f"--shape {part[:80]!r}: expected name=size, a size of at most {_LARGEST_SIZE}"
            )
    return dims


def parse_ids(text: str) -> list[int]:
    """Ids from `0-103,2000`, or from a file that holds them, divided by commas or spaces.

    Raises InputError.
    """
    path, given = Path(text), text
    if path.suffix in (".txt", ".csv"):
        try:
            given = read_text(path)
        except InputError as error:
            raise InputError(f"--keep {path}: {error}") from error
    found: list[int] = []
    for part in filter(None, re.split(r"[\s,]+", given)):
        first, _, last = part.partition("-")
        try:
            start, stop = whole(first), whole(last or first)
        except ValueError as error:
            raise InputError(f"--keep {part[:80]!r}: expected ids such as 0-103,2000") from error
        if not 0 <= start <= stop <= _LARGEST_ID:
            raise InputError(f"--keep {part[:80]!r}: expected ids from 0 to {_LARGEST_ID}, rising")
        found += range(start, stop + 1)
    return found


def parse_memory(given: str | float) -> int:
    """Bytes from `8GB`, or as they are. Raises InputError."""
    wrong = f"--memory {str(given)[:40]}: expected a size such as 8GB"
    if isinstance(given, str):
        try:
            amount = Bound("--memory", BYTES, "8GB").read(given)
        except InputError as error:
            raise InputError(wrong) from error
        if amount.relative:
            raise InputError(wrong)
        return int(amount.value)
    if not isinstance(given, Real) or not 0 < given < math.inf:
        raise InputError(wrong)
    return int(given)


def parse_weights(texts: Sequence[str]) -> dict[str, float]:
    """Numbers by output from `OUTPUT=2`, several divided by commas. Raises InputError."""
    return dict(pair for text in texts for pair in _pairs(text, real, "--weight-outputs", "NUMBER"))


def parse_shares(texts: Sequence[str]) -> dict[str, float]:
    """Shares by name from `GROUP=0.3` or `GROUP=30%`. Raises InputError."""
    shares = {}
    for text in texts:
        name, _, amount = text.rpartition("=")
        try:
            shares[name] = share(amount)
        except ValueError as error:
            raise InputError(f"--group {text!r}: expected GROUP=share") from error
    return shares


def parse_bounds(texts: Sequence[str]) -> dict[str, float]:
    """Shares by output from `OUTPUT=5%`, several divided by commas. Raises InputError."""
    pairs = [pair for text in texts for pair in _pairs(text, share, "--bound-outputs", "share")]
    bounds = dict(pairs)
    if len(bounds) < len(pairs):
        raise InputError(f"--bound-outputs {','.join(texts)}: an output has two bounds")
    return bounds


def _pairs(
    text: str, read: Callable[[str], float], option: str, what: str
) -> Iterator[tuple[str, float]]:
    """Names and what is said of them: a comma divides where a number stands before it, as the names
    of outputs may hold commas themselves.
    """
    begun: list[str] = []
    for part in text.split(","):
        begun.append(part)
        name, _, amount = ",".join(begun).rpartition("=")
        try:
            number = read(amount)
        except ValueError:
            continue
        yield name, number
        begun = []
    if begun:
        raise InputError(f"{option} {','.join(begun)!r}: expected OUTPUT={what}")
