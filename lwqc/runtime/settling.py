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
    low, high = _bounds(values)
    return high <= within * low


def _skipped(count: int) -> int:
    """How many of the least, and of the greatest, are outside of the interval of the median."""
    return math.floor(count / 2 - math.sqrt(count))


def medians_known(within: float) -> Settled:
    """All are settled once the median of each is known."""

    def settled(times: Times) -> Collection[int]:
        known = all(is_known([statistics.median(t) for t in own], within) for own in times)
        return range(len(times)) if known else ()

    return settled


def compared(alone: float, noise: float, ratio: float) -> Settled:
    """All are settled once the median of each is known within `alone`.

    Or within `noise`, where its time in units of the first one's is known within `ratio`: then a
    machine whose clock changes tells no more of one by being asked for longer.
    """
    close, near, side_by_side = medians_known(alone), medians_known(noise), ratios_known(ratio)

    def settled(times: Times) -> Collection[int]:
        found = close(times)
        if found or len(times) < 2:
            return found
        return near(times) if side_by_side(times) else ()

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
        apart = 0 in running and all(_is_clear(times, 0, i, noise, noise) for i in others)
        compared = others if apart or 0 not in running else running
        if all(is_known(ratios(times[i], times[compared[0]]), within) for i in compared[1:]):
            return running
        return {0} if apart else ()

    return settled


def decided(noise: float, within: float, keep: int, allowance: float = 1.0) -> Settled:
    """The first is what the others must not be slower than, of which the fastest `keep` matter.

    One is out when it was slower than the first, or than `keep` others, in each of r rounds by
    more than a factor of 1 + 1/r, or `noise` where that is more: twice in one round, a quarter in
    four; or when the interval of the median of six or more rounds is slower, than `allowance` times
    the first by more than `noise`. The first is out when it is that clear which others are faster.

    What is left goes on until a wrong choice costs no more than the factor `within`: by the
    interval, each of the fastest `keep` is that much slower at most than any that comes behind it,
    and no slower than `allowance` times the first, or not faster. Intervals are looked at after
    every round, and err more often than a single one would.
    """
    than_first, first_than = noise * allowance, noise / allowance

    def settled(times: Times) -> Collection[int]:
        longest = max(map(len, times))
        running = [i for i, own in enumerate(times) if len(own) == longest]

        def is_clear(slow: int, fast: int) -> bool:
            if 0 not in (slow, fast):
                return _is_clear(times, slow, fast, noise, 1.0)
            bar = first_than if slow == 0 else than_first
            return _is_clear(times, slow, fast, bar, bar)

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
        ranked = sorted(left, key=lambda i: statistics.median(ratios(times[i], times[left[0]])))
        chosen = ranked[:keep]
        close = all(
            _bounds(ratios(times[one], times[behind]))[1] <= within
            for place, one in enumerate(chosen)
            for behind in ranked[place + 1 :]
        )
        if close and (0 in out or all(_told(times, i, allowance, within) for i in chosen)):
            return running
        return out

    return settled


def _told(times: Times, index: int, allowance: float, within: float) -> bool:
    """Whether it is known, but for `within`, if one takes no more than `allowance` of the first."""
    low, high = _bounds(ratios(times[index], times[0]))
    return high <= allowance * within or low >= allowance / within


def _bounds(values: Sequence[float]) -> tuple[float, float]:
    """The interval that holds the true median, see `is_known`; of less than six values any."""
    if len(values) < _FEWEST:
        return 0.0, math.inf
    ordered, skipped = sorted(values), _skipped(len(values))
    return ordered[skipped], ordered[-1 - skipped]


def _is_clear(times: Times, slow: int, fast: int, noise: float, beyond: float) -> bool:
    """Whether one was slower in each round by what so many rounds tell apart, and by the noise.

    Or, as a single interruption would hide that, whether all of the interval of the median of at
    least six rounds is above `beyond`.
    """
    found = ratios(times[slow], times[fast])
    return min(found) > max(noise, 1 + 1 / len(found)) or _bounds(found)[0] > beyond


def ratios(own: Sequence[Sequence[float]], other: Sequence[Sequence[float]]) -> list[float]:
    """Of the fastest run of each turn to that of the other's turn in the same round."""
    return [min(a) / min(b) for a, b in zip(own, other, strict=False)]
