"""When sessions that take turns have been timed for long enough to tell what is asked.

Each function here makes one that `timer.time_turns` asks after a round for the sessions that need
no more turns. times: seconds per run [sessions][rounds][runs]; a session that takes no more turns
has fewer rounds than the others.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Collection, Sequence

_FEWEST = 6  # values that tell where their median is
Times = Sequence[Sequence[Sequence[float]]]
Settled = Callable[[Times], Collection[int]]


def is_known(values: Sequence[float], within: float) -> bool:
    """Whether the true median is known: its interval is no wider than the factor `within`.

    By order statistics, which assume nothing of the noise; it holds the median in 92 to 98 % of
    all cases. At least six values.
    """
    ordered = sorted(values)
    skipped = _skipped(len(ordered))
    return len(ordered) >= _FEWEST and ordered[-1 - skipped] <= within * ordered[skipped]


def _skipped(count: int) -> int:
    """How many of the least, and of the greatest, are outside of the interval of the median."""
    return math.floor(count / 2 - math.sqrt(count))


def medians_known(within: float) -> Settled:
    """All are settled once the median of each is known."""

    def settled(times: Times) -> Collection[int]:
        known = all(is_known([statistics.median(t) for t in own], within) for own in times)
        return range(len(times)) if known else ()

    return settled


def ratios_known(within: float) -> Settled:
    """All are settled once the time of each is known in units of the first one's."""

    def settled(times: Times) -> Collection[int]:
        known = all(is_known(ratios(own, times[0]), within) for own in times[1:])
        return range(len(times)) if known else ()

    return settled


def first_apart(noise: float, within: float) -> Settled:
    """The same, but the first is out once it is clear, as in `decided`, that others are faster.

    No other is out before the end: it may be faster on other inputs.
    """

    def settled(times: Times) -> Collection[int]:
        longest = max(map(len, times))
        running = [i for i, own in enumerate(times) if len(own) == longest]
        others = [i for i in running if i]
        apart = 0 in running and all(_is_clear(times, 0, i, noise) for i in others)
        compared = others if apart or 0 not in running else running
        if all(is_known(ratios(times[i], times[compared[0]]), within) for i in compared[1:]):
            return running
        return {0} if apart else ()

    return settled


def decided(noise: float, within: float, keep: int) -> Settled:
    """The first is what the others must not be slower than, of which the fastest `keep` matter.

    One is out when it was slower than the first, or than `keep` others, in each of r rounds by
    more than a factor of 1 + 1/r, or `noise` where that is more: twice in one round, a quarter in
    four; or when the median of six or more rounds is slower by more than `noise` for sure. The
    first is out when it is that clear which others are faster. What is left goes on until all
    ratios are known `within`, so that a close choice is made as well as without this.
    """

    def settled(times: Times) -> Collection[int]:
        longest = max(map(len, times))
        running = [i for i, own in enumerate(times) if len(own) == longest]

        def is_clear(slow: int, fast: int) -> bool:
            return _is_clear(times, slow, fast, noise)

        others = [i for i in running if i]
        out = {
            i
            for i in others
            if is_clear(i, 0) or sum(is_clear(i, j) for j in others if j != i) >= keep
        }
        left = [i for i in others if i not in out]
        if all(is_clear(0, i) for i in left):
            out.add(0)
            if len(left) < 2:
                return running
        compared = [i for i in running if i not in out]
        if all(is_known(ratios(times[i], times[compared[0]]), within) for i in compared[1:]):
            return running
        return out

    return settled


def _is_clear(times: Times, slow: int, fast: int, noise: float) -> bool:
    """Whether one was slower in each round by what so many rounds tell apart.

    Or, as a single interruption would hide that, whether all of the interval of the median of at
    least six rounds is beyond the noise.
    """
    found = sorted(ratios(times[slow], times[fast]))
    lowest = found[_skipped(len(found))] if len(found) >= _FEWEST else 0.0
    return found[0] > max(noise, 1 + 1 / max(map(len, times))) or lowest > noise


def ratios(own: Sequence[Sequence[float]], other: Sequence[Sequence[float]]) -> list[float]:
    """Of the fastest run of each turn to that of the other's turn in the same round."""
    return [min(a) / min(b) for a, b in zip(own, other, strict=False)]
