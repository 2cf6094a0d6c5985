"""Batches and outputs that are kept together, within a limit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from operator import length_hint
from typing import Any, TypeVar

from lwqc.model.limits import beyond, limits

Arrays = TypeVar("Arrays", bound=Mapping[str, Any])


def counted(runs: Iterable[Arrays], what: str, count: int | None = None) -> Iterator[Arrays]:
    """The same runs, for someone who keeps what they hold.

    count: how many there will be, where their own length does not tell. Raises LimitError where
    they take more than `Limits.traces`.
    """
    expected, held = length_hint(runs, 0) if count is None else count, 0
    for done, run in enumerate(runs, 1):
        held += array_bytes(run)
        if held > limits().traces:
            raise beyond(f"keeping {what}", "traces", held / done * max(expected, done))
        yield run


def array_bytes(run: Mapping[str, Any]) -> int:
    """Bytes of its arrays; strings count as references to them."""
    return sum(int(getattr(value, "nbytes", 0)) for value in run.values())
