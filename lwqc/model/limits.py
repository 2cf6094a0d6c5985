"""How much one model or one file of data may take, and the option that raises it.

A model is a stranger: the numbers in its file decide nothing about memory or time beyond these.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from lwqc.errors import InputError
from lwqc.model.extensions import expected

_UNITS = {"": 1.0, "s": 1.0, "MIN": 60.0, "B": 1.0, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12,
          "KIB": 2.0**10, "MIB": 2.0**20, "GIB": 2.0**30}  # fmt: skip
_SECONDS = frozenset({"", "s", "MIN"})


@dataclass(frozen=True)
class Limits:
    """What the work may take.

    inputs: bytes of one set of random inputs, at 8 for each number. data: bytes of one file of
    data, unpacked. traces: bytes of batches, outputs and activations that are kept together, in
    memory or in temporary files. folding: bytes of one tensor that is computed beforehand, at 4 for
    each number. memory: bytes of the process in which a model runs for the first time, beside 16
    times the model's own and 4 times its inputs'. run: seconds of that run.
    """

    inputs: float = 256e6
    data: float = 4e9
    traces: float = 8e9
    folding: float = 4 * 2.0**18
    memory: float = 1.25e9
    run: float = 45.0

    @property
    def folded_numbers(self) -> int:
        """How many numbers one folded tensor may have."""
        return int(self.folding) // 4


class LimitError(InputError):
    """Something takes more than its limit allows."""


def beyond(what: str, name: str, needed: float) -> LimitError:
    """The error for something that needs so many bytes. name: of the limit."""
    allowed = getattr(_current, name)
    return LimitError(
        f"{what} takes {_shown(needed)}; allowed are {_shown(allowed)}: raise it with "
        f"lwqc --limit {name}={_shown(needed).replace(' ', '')} COMMAND"
    )


_current = Limits()


def limits() -> Limits:
    """The limits in force."""
    return _current


def set_limits(changed: Limits) -> None:
    """Use other limits from now on, in this process."""
    global _current
    _current = changed


def parse_limits(texts: Sequence[str]) -> Limits:
    """The limits in force with some of them as given, `inputs=4GB`. Raises InputError."""
    names = [field.name for field in fields(Limits)]
    found: dict[str, float] = {}
    for text in texts:
        name, _, amount = text.partition("=")
        if name not in names:
            raise InputError(f"--limit {text}: {expected(name, names)}; as in run=60s")
        found[name] = _amount(text, amount, seconds=name == "run")
    return replace(_current, **found)


def _amount(text: str, amount: str, *, seconds: bool) -> float:
    read = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)\s?([A-Za-z]{0,3})", amount, re.ASCII)
    unit = "" if read is None else read.group(2)
    unit = unit if unit == "s" else unit.upper()
    fits = unit in _UNITS and (unit == "" or (unit in _SECONDS) == seconds)
    if read is None or not fits or not float(read.group(1)):
        raise InputError(f"--limit {text}: expected {'600s' if seconds else '4GB'} or the like")
    return float(read.group(1)) * _UNITS[unit]


def _shown(count: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{-(-count * 10 // size) / 10:g} {unit}"
    return f"{count:g} B"
