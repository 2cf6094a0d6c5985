"""Greedy removal: always the candidate whose removal costs least now."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Step(Generic[T]):
    """One removal. cost: of everything removed so far, as it was measured."""

    removed: T
    cost: float


def greedy(
    candidates: Sequence[T],
    evaluate: Callable[[frozenset[T]], float],
    count: int,
    *,
    protected: Collection[T] = (),
    readmit_after: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[Step[T]]:
    """Remove `count` candidates one by one, evaluating all that are left after each removal.

    protected: candidates that stay; with `readmit_after`, only until that many are removed.
    Ties go to the earlier candidate. Ends early when all that is left is protected. The whole
    takes about count * len(candidates) evaluations. Source: FinerCut, arXiv 2405.18218.
    """
    removed: list[T] = []
    while len(removed) < min(count, len(candidates)):
        guard = readmit_after is None or len(removed) < readmit_after
        left = [c for c in candidates if c not in removed and not (guard and c in protected)]
        if not left and guard and readmit_after is not None:
            readmit_after = len(removed)  # the rest is protected: let it in now
            continue
        if not left:
            return
        costs = [evaluate(frozenset([*removed, c])) for c in left]
        best = min(range(len(left)), key=costs.__getitem__)
        removed.append(left[best])
        progress(len(removed), count)
        yield Step(left[best], costs[best])
