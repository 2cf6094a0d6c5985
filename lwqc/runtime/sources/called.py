"""What a user's function yields."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from lwqc.model.user_code import running


class Called:
    """What a function gives; it is called anew each time. where: names it in messages."""

    def __init__(self, make: Callable[[], Any], where: str) -> None:
        self._make, self._where = make, where

    def __iter__(self) -> Iterator[Any]:
        with running(f"{self._where}: the call failed"):
            source = iter(self._make())
        end: Any = object()
        while True:
            with running(f"{self._where}: failed while yielding data"):
                feeds: Any = next(source, end)
            if feeds is end:
                return
            yield feeds
