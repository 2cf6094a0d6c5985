"""Lists in which a missing position means that a node does not fit its operator's rule."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import SupportsIndex, TypeVar, overload

from lwqc.graph.axes import Factor

T = TypeVar("T")
U = TypeVar("U")


class BarrierError(Exception):
    """A rule refuses a node; its text is the reason."""


class Fit(list[T]):
    """A list whose items are there, or the node is a barrier: files state ranks as they like."""

    @overload
    def __getitem__(self, at: SupportsIndex, /) -> T: ...

    @overload
    def __getitem__(self, at: slice, /) -> Fit[T]: ...

    def __getitem__(self, at: SupportsIndex | slice, /) -> T | Fit[T]:
        """An item, or a part. Raises BarrierError for an item that is not there."""
        if isinstance(at, slice):
            return Fit(super().__getitem__(at))
        position = at.__index__()
        if not -len(self) <= position < len(self):
            raise BarrierError(f"something of it has {len(self)} entries, too few for the operator")
        return super().__getitem__(position)


Dims = Fit[Factor]


def pairs(first: Sequence[T], second: Sequence[U]) -> Iterator[tuple[T, U]]:
    """Items side by side. Raises BarrierError for lists of different lengths."""
    if len(first) != len(second):
        raise BarrierError(f"has {len(first)} dimensions where {len(second)} are expected")
    return zip(first, second, strict=True)


def exactly(items: Sequence[T], count: int) -> Sequence[T]:
    """The items, which are so many. Raises BarrierError."""
    if len(items) != count:
        raise BarrierError(f"has {len(items)} dimensions; the operator takes {count}")
    return items


def share(size: int, count: int) -> int:
    """Size of each of `count` equal parts. Raises BarrierError where there are none."""
    if count < 1 or size < count:
        raise BarrierError(f"{size} cannot be cut into {count} parts")
    return size // count
