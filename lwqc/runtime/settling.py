"""When sessions that take turns have been timed for long enough to tell what is asked.

Each function here makes one that `timer.time_turns` asks after a round for the sessions that need
no more turns. times: seconds per run [sessions][rounds][runs]; a session that takes no more turns
has fewer rounds than the others.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Collection, Sequence

Times = Sequence[Sequence[Sequence[float]]]
Settled = Callable[[Times], Collection[int]]


def is_known(values: Sequence[float], within: float) -> bool:
    """Whether the true median is known: its interval is no wider than the factor `within`.

    By order statistics, which assume nothing of the noise; it holds the median in 92 to 98 % of
    all cases. At least six values.
    """
    ordered = sorted(values)
    count = len(ordered)
    skipped = math.floor(count / 2 - math.sqrt(count))
    return count >= 6 and ordered[-1 - skipped] <= within * ordered[skipped]


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


def decided(noise: float, within: float, keep: int) -> Settled:
    """The first is what the others must not be slower than, of which the fastest `keep` matter.

    One is out when it was slower than the first, or than `keep` others, in each of r rounds by
    more than a factor of 1 + 1/r, or `noise` where that is more: twice in one round, a quarter in
    four. The first is out when it is that clear which others are faster. What is left goes on until
    all ratios are known `within`, so that a close choice is made as well as without this.
    """

    def settled(times: Times) -> Collection[int]:
        longest = max(map(len, times))
        running = [i for i, own in enumerate(times) if len(own) == longest]
        margin = max(noise, 1 + 1 / longest)

        def is_clear(slow: int, fast: int) -> bool:
            return min(ratios(times[slow], times[fast])) > margin

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


def ratios(own: Sequence[Sequence[float]], other: Sequence[Sequence[float]]) -> list[float]:
    """Of the fastest run of each turn to that of the other's turn in the same round."""
    return [min(a) / min(b) for a, b in zip(own, other, strict=False)]
