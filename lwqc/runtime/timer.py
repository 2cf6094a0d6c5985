"""The timer: sessions take turns, in alternating order, until what is asked is known."""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Sequence

from lwqc.errors import InputError
from lwqc.runtime.session import SPIN_US, Feeds, Session
from lwqc.runtime.settling import Settled

VARIABLE = "LWQC_TIMING_S"
_TURN = 4  # runs of one session in a row that count
_SLOW_S = 0.02  # such a run spans what several short ones would
_SLOWEST_S = 0.2  # and such a one what several slow ones would
_SOONEST = 0.2  # share of the time before which nothing counts as settled
_LONG = 20  # times the wait for other threads: a first run that counts


def longest_s() -> float:
    """Most seconds of one timing of one model: `$LWQC_TIMING_S`; without it, what a step asks for.

    Raises InputError.
    """
    text = os.environ.get(VARIABLE, "")
    if not text:
        return math.inf
    if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", text, re.ASCII) or float(text) == 0:
        raise InputError(f"{VARIABLE}={text[:40]}: expected a number of seconds above 0")
    return float(text)


def time_runs(
    sessions: Sequence[Session],
    feeds: Feeds,
    *,
    seconds: float = 2.0,
    least: int = 3,
    settled: Settled = lambda times: (),
) -> list[list[float]]:
    """Time sessions in turns, see `time_turns`; seconds per run, one list each."""
    turns = time_turns(sessions, feeds, seconds=seconds, least=least, settled=settled)
    return [[run for turn in own for run in turn] for own in turns]


def time_turns(
    sessions: Sequence[Session],
    feeds: Feeds,
    *,
    seconds: float = 2.0,
    least: int = 3,
    settled: Settled = lambda times: (),
) -> list[list[list[float]]]:
    """Time sessions in turns, in alternating order; seconds per run [sessions][rounds][runs].

    A turn is a few runs, or half as many and twice as often where one takes long, and one where it
    takes very long. Before them come some that are not counted, until the threads of the session
    before have stopped waiting: they find the caches full of another model, too. Turns go on until
    `seconds` per session have passed, and at least `least` rounds; but no longer than `longest_s`.

    settled: which sessions need no more turns, see `settling`; asked once a fifth of the time has
    passed. The others then take as many as if those still took theirs.
    """
    most = longest_s() * len(sessions)
    slowest = max(session.seconds(feeds) for session in sessions)
    runs = _TURN if slowest < _SLOW_S else _TURN // 2 if slowest < _SLOWEST_S else 1
    least *= 1 if runs == _TURN else 2
    times: list[list[list[float]]] = [[] for _ in sessions]
    spent = [0.0] * len(sessions)  # by the last turn of each
    passed, limit = 0.0, min(seconds * len(sessions), most)
    order = list(range(len(sessions)))
    while order and (passed < limit or (max(map(len, times)) < least and passed < most)):
        for i in order:
            start = time.perf_counter()
            times[i].append(_turn(sessions[i], feeds, runs))
            spent[i] = time.perf_counter() - start
        passed += sum(spent)
        done = settled(times) if passed >= _SOONEST * limit else ()
        order = [i for i in reversed(order) if i not in done]
    return times


def _turn(session: Session, feeds: Feeds, runs: int) -> list[float]:
    start = time.perf_counter()
    first = session.seconds(feeds)
    if first > _LONG * 1e-6 * SPIN_US:  # it had nearly all of its time for itself
        return [first, *(session.seconds(feeds) for _ in range(runs - 1))]
    while time.perf_counter() < start + 1e-6 * SPIN_US:
        session.seconds(feeds)
    return [session.seconds(feeds) for _ in range(runs)]
