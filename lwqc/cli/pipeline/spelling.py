"""Errors for names that nothing knows, with the nearest name that something does."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from lwqc.errors import InputError


def check_known(name: str, known: Iterable[str], where: str, what: str) -> None:
    """Raises InputError for a name that is not known.

    where: start of the message, the file and the table. what: of what kind the name is.
    """
    names = sorted(known)
    if name in names:
        return
    near = get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(names)}"
    raise InputError(f"{where}: {what} {name!r} is not known; {hint}")
