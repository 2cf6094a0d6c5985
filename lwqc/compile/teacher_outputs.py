"""Outputs of a teacher that are computed whenever they are read, as all of them are too much."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from numpy.typing import NDArray

from lwqc.model.limits import limits
from lwqc.runtime.counted import array_bytes
from lwqc.runtime.memory import free_memory

Array = NDArray[Any]
Feeds = Mapping[str, Array]
Outputs = dict[str, Array]
_OF_MEMORY = 0.25  # share of what is free that outputs may take


class Last:
    """The outputs that were computed last, of all that share it."""

    def __init__(self) -> None:
        self._owner: object = None
        self._outputs: Outputs = {}

    def of(self, owner: object, compute: Callable[[], Outputs]) -> Outputs:
        """Those of an owner, computed where another one's were read since."""
        if self._owner is not owner:
            self._owner, self._outputs = None, {}  # two at once would be twice the memory
            self._outputs = compute()
            self._owner = owner
        return self._outputs


class Recomputed(Mapping[str, Array]):
    """Tensors by name. last: shared by all, of which one is in memory."""

    def __init__(self, names: tuple[str, ...], compute: Callable[[], Outputs], last: Last) -> None:
        self._names, self._compute, self._last = names, compute, last

    def __getitem__(self, name: str) -> Array:
        if name not in self._names:
            raise KeyError(name)
        return self._last.of(self, self._compute)[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def kept_or_recomputed(
    names: tuple[str, ...],
    compute: Callable[[Feeds], Outputs],
    feeds: Sequence[Feeds],
    first: Sequence[int],
) -> list[Mapping[str, Array]]:
    """What is computed of each of the feeds; `Recomputed` where memory for it is used up.

    names: of the outputs. first: feeds whose outputs are read most, and kept before the others'.
    """
    last, left = Last(), _may_take()
    found: list[Mapping[str, Array]] = [
        Recomputed(names, partial(compute, one), last) for one in feeds
    ]
    for index in (*first, *sorted(set(range(len(feeds))) - set(first))):
        outputs = compute(feeds[index])
        left -= array_bytes(outputs)
        if left < 0:
            break
        found[index] = outputs
    return found


def _may_take() -> float:
    """Bytes of outputs that stay in memory: a quarter of what is free, and no more than a limit."""
    free, most = free_memory(), limits().traces
    return most if free is None else min(most, _OF_MEMORY * free)
