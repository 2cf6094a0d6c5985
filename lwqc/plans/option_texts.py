"""Options that are written as `name=value`, read into what Python takes."""

from __future__ import annotations

from collections.abc import Sequence

from lwqc.errors import InputError
from lwqc.model.numerals import real, share, whole

_LARGEST_SIZE = 2**31 - 1


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


def parse_weights(texts: Sequence[str]) -> dict[str, float]:
    """Numbers by output from `OUTPUT=2`, several divided by commas. Raises InputError."""
    weights = {}
    for text in (one for given in texts for one in given.split(",")):
        name, _, number = text.rpartition("=")
        try:
            weights[name] = real(number)
        except ValueError as error:
            raise InputError(f"--weight-outputs {text!r}: expected OUTPUT=NUMBER") from error
    return weights


def parse_shares(texts: Sequence[str]) -> dict[str, float]:
    """Shares by name from `GROUP=0.3` or `GROUP=30%`. Raises InputError."""
    return _shares(texts, "--group", "GROUP")


def parse_bounds(texts: Sequence[str]) -> dict[str, float]:
    """Shares by output from `OUTPUT=5%`, several divided by commas. Raises InputError."""
    each = [one for given in texts for one in given.split(",")]
    bounds = _shares(each, "--bound-outputs", "OUTPUT")
    if len(bounds) < len(each):
        raise InputError(f"--bound-outputs {','.join(texts)}: an output has two bounds")
    return bounds


def _shares(texts: Sequence[str], option: str, what: str) -> dict[str, float]:
    shares = {}
    for text in texts:
        name, _, amount = text.rpartition("=")
        try:
            shares[name] = share(amount)
        except ValueError as error:
            raise InputError(f"{option} {text!r}: expected {what}=share") from error
    return shares
