"""When timing may end, on times that are given rather than taken."""

import numpy as np
import pytest

from lwqc.errors import InputError
from lwqc.runtime import timer as module
from lwqc.runtime.settling import (
    compared,
    decided,
    first_apart,
    is_known,
    medians_known,
    ratios,
    ratios_known,
)
from lwqc.runtime.timer import VARIABLE, longest_s, time_turns

pytestmark = pytest.mark.timed


@pytest.fixture(autouse=True)
def as_long_as_asked(monkeypatch):
    """Clocks are not real here."""
    monkeypatch.delenv(VARIABLE)


class Clock:
    """Time that passes only while a session runs."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(module.time, "perf_counter", lambda: self.now)


class Timed:
    """A session whose runs take what is said, with noise of some share."""

    def __init__(self, clock, seconds, noise=0.0, seed=0):
        self._clock, self._seconds, self._noise = clock, seconds, noise
        self._rng = np.random.default_rng(seed)
        self.runs = 0

    def seconds(self, feeds):
        self.runs += 1
        took = self._seconds * (1 + self._noise * self._rng.exponential())
        self._clock.now += took
        return took


def taken(monkeypatch, of_runs, noise=0.0, **options):
    """Rounds of each of some sessions, and the time that all took."""
    clock = Clock(monkeypatch)
    sessions = [Timed(clock, s, noise, seed=i) for i, s in enumerate(of_runs)]
    times = time_turns(sessions, {}, **options)
    return [len(own) for own in times], clock.now


def test_a_median_is_known_from_six_values_on_that_agree():
    assert not is_known([1.0] * 5, 1.02)
    assert is_known([1.0] * 6, 1.0)
    assert is_known([1.0, 1.005, 1.01, 1.0, 1.01, 1.015], 1.02)
    assert not is_known([1.0, 1.0, 1.0, 1.0, 1.0, 1.3], 1.02)


def test_the_interval_of_the_median_holds_it_as_often_as_said():
    rng = np.random.default_rng(0)
    for count in (6, 9, 16, 40):
        values = np.sort(rng.exponential(size=(4000, count)))
        skipped = int(np.floor(count / 2 - np.sqrt(count)))
        held = (values[:, skipped] <= np.log(2)) & (np.log(2) <= values[:, -1 - skipped])
        assert held.mean() > 0.9  # 95 % as the normal approximation has it, less for a few values


def test_nothing_ends_early_unless_it_is_asked(monkeypatch):
    rounds, _ = taken(monkeypatch, [1.0, 0.5], seconds=20)
    assert rounds[0] == rounds[1] >= 6


def test_quiet_timings_end_once_known_and_noisy_ones_take_their_time(monkeypatch):
    for rule in (ratios_known(1.02), medians_known(1.02)):
        quiet, short = taken(monkeypatch, [0.1, 0.05], seconds=10, settled=rule)
        noisy, long = taken(monkeypatch, [0.1, 0.05], noise=0.5, seconds=10, settled=rule)
        assert quiet == [6, 6] or short >= 0.2 * 20
        assert noisy[0] > 2 * quiet[0]
        assert long == pytest.approx(20, rel=0.15)


def test_a_clock_that_changes_for_both_does_not_hide_their_ratio():
    """Medians within 5 % suffice then; where only one changes they do not."""
    clock = [1.0, 1.04] * 4 + [1.0]
    both = [[[c] for c in clock], [[0.5 * c] for c in clock]]
    rule = compared(1.03, 1.05, 1.02)
    assert set(rule(both)) == {0, 1}
    assert not medians_known(1.03)(both)
    assert not rule([both[0], [[0.5]] * 9])
    assert not rule(both[:1])
    assert set(rule([[[1.0]] * 9, [[0.5], [0.51]] * 4 + [[0.5]]])) == {0, 1}
    wild = [1.0, 1.2] * 4 + [1.0]
    assert not rule([[[c] for c in wild], [[0.5 * c] for c in wild]])


def test_what_is_clearly_slower_stops_first_and_the_rest_gets_as_many_rounds(monkeypatch):
    seconds = [0.10, 0.03, 0.031, 0.30]
    all_rounds, full = taken(monkeypatch, seconds, noise=0.2, seconds=3)
    rounds, short = taken(
        monkeypatch, seconds, noise=0.2, seconds=3, settled=decided(1.05, 1.0, keep=1)
    )
    assert rounds[3] < rounds[1] / 2
    assert rounds[0] < rounds[1]
    assert abs(rounds[1] - all_rounds[1]) <= 1
    assert rounds[1] == rounds[2]  # which of the two is faster is not clear
    assert short < 0.5 * full


def test_one_that_is_left_ends_it(monkeypatch):
    rounds, _ = taken(monkeypatch, [0.1, 0.03, 0.19], seconds=3, settled=decided(1.05, 1.0, keep=1))
    assert max(rounds) <= 3


def test_the_fastest_few_are_kept(monkeypatch):
    seconds = [0.1, 0.03, 0.03, 0.09]
    rounds, _ = taken(
        monkeypatch, seconds, noise=0.1, seconds=9, settled=decided(1.05, 1.0, keep=2)
    )
    assert max(rounds) in rounds[1:3]
    assert min(rounds[1:3]) > rounds[3]


def test_one_interruption_does_not_hide_what_is_clear(monkeypatch):
    """A third slower but for one round, in which something else ran beside the other."""
    quick = [[1.0]] * 3 + [[3.0]] + [[1.0]] * 5
    slow = [[1.33]] * 9
    assert set(decided(1.05, 1.0, keep=1)([[[2.0]] * 9, quick, slow])) == {0, 1, 2}
    level = [[0.98], [1.06]] * 4 + [[0.98]]
    assert not decided(1.05, 1.0, keep=1)([[[1.0]] * 9, quick, level])


def test_one_that_stopped_early_is_compared_by_the_rounds_that_it_has():
    """Two rounds tell apart what differs by a half, however many others have had since."""
    first, quick, other = [[1.0]] * 2, [[1.1]] * 9, [[1.0], [1.3]] * 4 + [[1.3]]
    assert not decided(1.05, 1.0, keep=2)([first, quick, other])
    assert set(decided(1.05, 1.0, keep=2)([first, [[1.6]] * 9, other])) == {1}


def test_it_ends_once_a_wrong_choice_costs_little():
    """How much slower the others are need not be known, nor by how much the first is beaten."""
    rng = np.random.default_rng(0)

    def rounds(seconds):
        return [[seconds * (1 + 0.01 * rng.standard_normal())] for _ in range(9)]

    rule = decided(1.05, 1.02, keep=1)
    first, quick = [[2.0], [1.4]] * 4 + [[2.0]], [[1.0]] * 9
    close, wide = rounds(1.04), [[1.02], [1.3]] * 4 + [[1.3]]
    assert set(rule([first, quick, close, wide])) == {0, 1, 2, 3}
    assert not rule([[[1.01]] * 9, quick, [[0.97], [1.3]] * 4 + [[1.3]]])  # which may be faster


def test_what_is_chosen_is_hardly_slower_than_the_fastest_in_a_quarter_of_the_time(monkeypatch):
    """Five within six percent of each other, with much noise: by the median of their ratios."""
    rng, lost, spent = np.random.default_rng(0), [], []
    for _ in range(60):
        clock = Clock(monkeypatch)
        of_runs = [0.004, *(0.0025 * (1 + 0.06 * rng.random(5)))]
        sessions = [Timed(clock, s, 0.15, seed=rng.integers(1 << 30)) for s in of_runs]
        times = time_turns(sessions, {}, seconds=1.0, settled=decided(1.05, 1.02, keep=1))
        last = max(times, key=len)
        found = [float(np.median(ratios(own, last))) for own in times[1:]]
        lost.append(of_runs[1 + int(np.argmin(found))] / min(of_runs[1:]) - 1)
        spent.append(clock.now)
    assert np.mean(lost) < 0.004
    assert np.mean(np.array(lost) > 0.02) <= 0.02
    assert np.mean(spent) < 0.3 * 6.0


@pytest.mark.parametrize(
    ("took", "allowance"), [(1.0, 1.0), (1.05, 1.0), (0.95, 1.0), (0.95, 0.95), (1.1, 1.05)]
)
def test_whether_one_is_fast_enough_is_known_where_it_is_steady(took, allowance):
    """But for two percent, on either side of what is allowed."""
    own = [[took * f] for f in (1.0, 1.004, 0.996, 1.0, 1.002, 0.998)]
    assert decided(1.05, 1.02, 1, allowance)([[[1.0]] * 6, own])
    spread = [[took * f] for f in (0.8, 1.3) * 3]
    assert not decided(1.05, 1.02, 1, allowance)([[[1.0]] * 6, spread])


def test_one_that_is_far_within_what_is_allowed_ends_it_though_it_varies():
    own = [[f] for f in (1.0, 0.8, 0.93, 1.0, 0.85, 1.02)]
    assert set(decided(1.05, 1.02, 1, 1.05)([[[1.0]] * 6, own])) == {0, 1}
    assert not decided(1.05, 1.02, 1, 0.9)([[[1.0]] * 6, own])


def test_what_an_allowance_accepts_is_not_out_for_being_slower_than_the_first():
    slower = [[f] for f in (1.25, 1.24, 1.26, 1.25, 1.23, 1.27)]
    rest = [[f] for f in (1.3, 1.1, 1.2, 1.31, 1.12, 1.25)]
    first = [[1.0]] * 6
    assert set(decided(1.05, 1.02, 1)([first, slower, rest])) >= {1, 2}
    assert 1 not in decided(1.05, 1.02, 2, 1.3)([first, slower, rest])
    assert set(decided(1.05, 1.02, 1, 1.3)([first, slower])) == {0, 1}  # which is known by now
    assert not decided(1.05, 1.02, 1, 1.22)([first, rest])


def test_of_several_inputs_only_the_first_stops_and_once_all_others_are_faster(monkeypatch):
    """The others may be faster on other inputs, however slow they are on these."""
    rule = first_apart(1.05, 1.0)
    rounds, _ = taken(monkeypatch, [0.1, 0.03, 0.04], noise=0.1, seconds=3, settled=rule)
    assert rounds[0] < rounds[1] == rounds[2]
    rounds, _ = taken(monkeypatch, [0.1, 0.03, 0.3], noise=0.1, seconds=3, settled=rule)
    assert rounds[0] == rounds[1] == rounds[2]


def test_one_that_is_clearly_faster_on_each_of_several_inputs_is_known_at_once(monkeypatch):
    rule = first_apart(1.05, 1.02)
    assert taken(monkeypatch, [1.0, 0.1], seconds=1, settled=rule)[0] == [1, 1]
    assert min(taken(monkeypatch, [1.0, 0.9], seconds=1, settled=rule)[0]) >= 6


def test_very_long_runs_are_turns_of_their_own(monkeypatch):
    """What is reported of them are medians of at least six."""
    clock = Clock(monkeypatch)
    sessions = [Timed(clock, seconds) for seconds in (1.3, 0.04)]
    rounds = time_turns(sessions, {}, seconds=2, settled=medians_known(1.02))
    assert [len(own) for own in rounds] == [6, 6]
    assert {len(turn) for own in rounds for turn in own} == {1}


def test_nothing_is_out_before_a_fifth_of_the_time(monkeypatch):
    """So that one interruption does not decide between models of microseconds."""
    rounds, _ = taken(monkeypatch, [1e-4, 3e-4], seconds=0.5, settled=decided(1.05, 1.02, keep=1))
    assert min(rounds) > 20


def test_the_environment_ends_every_timing(monkeypatch):
    assert taken(monkeypatch, [0.1, 0.05], seconds=2)[1] > 4
    monkeypatch.setenv(VARIABLE, "0.4")
    assert 0.8 < taken(monkeypatch, [0.1, 0.05], seconds=2)[1] < 0.8 + 2 * 0.3
    rounds, _ = taken(monkeypatch, [0.1, 0.05], seconds=0.01)
    assert rounds == [3, 3]  # fewer than the six that it takes otherwise
    monkeypatch.setenv(VARIABLE, "0.001")
    assert taken(monkeypatch, [0.1, 0.05], seconds=2)[0] == [1, 1]


@pytest.mark.parametrize("text", ["0", "0.0", "-1", "inf", "two", "1e3", "٣", "1\n"])
def test_the_longest_timing_is_a_number_of_seconds(monkeypatch, text):
    monkeypatch.setenv(VARIABLE, text)
    with pytest.raises(InputError, match=f"{VARIABLE}={text}: expected a number of seconds"):
        longest_s()
