"""Numbers as people write them: ASCII digits, finite, and no larger than 64 bits hold.

Python reads more: `nan`, `inf`, `1_0`, digits of every script and thousands of them.
"""

from __future__ import annotations

import math
import re
from numbers import Real

from lwqc.model.documents import LARGEST

_REAL = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]{1,5})?")
_WHOLE = re.compile(r"[-+]?[0-9]{1,19}")


def real(text: str) -> float:
    """A finite number. Raises ValueError."""
    if not _REAL.fullmatch(text) or not math.isfinite(number := float(text)):
        raise ValueError(f"{text[:40]!r} is not a finite number")
    return number


def share(given: str | float) -> float:
    """A share as a number, or in percent: 0.3 or 30%. Raises ValueError."""
    if isinstance(given, str):
        return real(given[:-1].rstrip(" ")) / 100 if given.endswith("%") else real(given)
    if isinstance(given, bool) or not isinstance(given, Real):
        raise ValueError(f"{given!r} is not a number")
    return float(given)


def count_or_share(given: str | float) -> float:
    """A whole number of at least 1, or a share below 1: 0.3 or 30%. Raises ValueError."""
    found = share(given)
    in_percent = isinstance(given, str) and given.endswith("%")
    if found <= 0 or (found >= 1 and (in_percent or found % 1)):
        raise ValueError(f"{given}: expected a count or a share below 1")
    return found


def whole(text: str) -> int:
    """A whole number. Raises ValueError."""
    if not _WHOLE.fullmatch(text) or abs(number := int(text)) > LARGEST:
        raise ValueError(f"{text[:40]!r} is not a whole number of at most 64 bits")
    return number


def size_text(size_bytes: float) -> str:
    """Bytes with a decimal unit."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size_bytes >= factor:
            return f"{size_bytes / factor:.2f} {unit}"
    return f"{size_bytes:.0f} B"
