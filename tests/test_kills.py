"""A short, fixed part of `python -m tests.kills`."""

from __future__ import annotations

import signal

import pytest

from tests.kills import INPUTS, Tally, Trial, contents, make_inputs

pytest.importorskip("fcntl", reason="leftovers are told by locks")


@pytest.mark.parametrize(
    ("number", "name", "writing"),
    [
        (signal.SIGKILL, "quantize-external", True),
        (signal.SIGTERM, "quantize-external", True),
        (signal.SIGTERM, "plan", False),
        (signal.SIGINT, "plan", False),
    ],
)
def test_a_kill_leaves_everything_whole(tmp_path, number, name, writing):
    make_inputs(tmp_path)
    inputs = contents(tmp_path, INPUTS)
    trial = Trial(tmp_path, name, number, False, Tally(), forks=False)
    delay = 0.0 if writing else 0.4
    trial.check(delay, inputs, writing=writing, again=number == signal.SIGKILL)
    assert not trial.tally.faults
