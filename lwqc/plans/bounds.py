"""How users write bounds: a share of what the original takes, or an amount in a unit."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from lwqc.errors import InputError
from lwqc.model.numerals import count_or_share, real, share

BYTES: Mapping[str, float] = {
    "b": 1, "kb": 1_000, "mb": 1_000_000, "gb": 1_000_000_000,
    "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30,
}  # fmt: skip
MILLISECONDS: Mapping[str, float] = {"us": 1e-3, "ms": 1.0, "s": 1e3}
COUNT: Mapping[str, float] = {"k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}

DEFAULT_DROP = 0.01  # of the outputs or the metric, where nobody says what may be lost


@dataclass(frozen=True)
class Amount:
    """A bound: a fraction of the original's value, or an absolute one."""

    value: float
    relative: bool

    def __str__(self) -> str:
        return f"{self.value:g} of the original" if self.relative else f"{self.value:.12g}"

    def resolve(self, original: float) -> float:
        """The bound in the original's unit."""
        return self.value * original if self.relative else self.value


@dataclass(frozen=True)
class Bound:
    """How a bound is written: `0.5` or `50%` (of the original), or `20MB`.

    what: for messages. units: by their names in small letters. example: an amount with its unit.
    """

    what: str
    units: Mapping[str, float]
    example: str

    def read(self, given: str | float) -> Amount:
        """The amount, in the unit of value 1. Raises InputError."""
        text = str(given)
        expected = f"expected a fraction such as 0.5 or {self.example}"
        found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?)\s*([a-zA-Z]*|%)\s*", text)
        unit = found.group(2).lower() if found else ""
        if not found or (unit not in ("", "%") and unit not in self.units):
            raise InputError(f"{self.what} {text!r}: {expected}")
        try:
            number = real(found.group(1))
        except ValueError as error:
            raise InputError(f"{self.what} {text[:40]!r}: {expected}") from error
        if unit == "%":
            number, unit = share(f"{found.group(1)}%"), ""
        if not unit and not 0 < number <= 1:
            raise InputError(
                f"{self.what} {text!r}: a value without a unit is a fraction between 0 and 1"
            )
        if number <= 0:
            raise InputError(f"{self.what} {text!r}: must be above 0")
        return Amount(number * self.units[unit], False) if unit else Amount(number, True)


@dataclass(frozen=True)
class Number:
    """A bound that is a number in one unit alone, above 0 and at most `most`."""

    what: str
    most: float

    def read(self, given: float) -> Amount:
        """The number as it is. Raises InputError."""
        if not 0 < given <= self.most:
            raise InputError(f"{self.what} {given}: must be above 0 and at most {self.most:g}")
        return Amount(given, False)


@dataclass(frozen=True)
class Share:
    """A number that may be written in percent."""

    what: str
    expected: ClassVar[str] = "a share such as 0.3 or 30%"

    def read(self, given: str | float) -> float:
        """The number; what it may be beside that says whoever takes it. Raises InputError."""
        try:
            return self.number(given)
        except ValueError as error:
            text = f"{str(given)[:40]!r}"
            raise InputError(f"{self.what} {text}: expected {self.expected}") from error

    def number(self, given: str | float) -> float:
        """The number. Raises ValueError."""
        return share(given)


@dataclass(frozen=True)
class CountOrShare(Share):
    """A count, or a share below 1."""

    expected = "a count or a share below 1, such as 4 or 30%"

    def number(self, given: str | float) -> float:
        """The number. Raises ValueError."""
        return count_or_share(given)
