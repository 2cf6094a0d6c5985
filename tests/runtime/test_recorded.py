"""Outputs that are needed again."""

import ml_dtypes
import numpy as np
import pytest

from lwqc.runtime.recorded import Recorded


class Counting:
    """A session that counts its runs."""

    outputs = ("y",)

    def __init__(self, make=lambda feeds: feeds["x"] * 2):
        self.runs, self._make = 0, make

    def __call__(self, feeds):
        self.runs += 1
        return {"y": self._make(feeds)}


def test_equal_feeds_run_once_and_others_for_themselves():
    session = Counting()
    recorded = Recorded(session)
    for _ in range(3):
        for value in (1.0, 2.0):
            assert recorded({"x": np.full((2, 3), value)})["y"][0, 0] == 2 * value
    assert session.runs == 2
    recorded({"x": np.full((3, 2), 1.0)})  # the same numbers in another shape
    recorded({"x": np.full((2, 3), 1, np.float32)})
    recorded({"x": np.full((2, 3), 1, ml_dtypes.bfloat16)})
    assert session.runs == 5


def test_strings_are_told_apart():
    session = Counting(lambda feeds: np.array([len(feeds["x"][0])]))
    recorded = Recorded(session)
    assert [recorded({"x": np.array([w], object)})["y"][0] for w in ("a", "bcd", "a")] == [1, 3, 1]
    assert session.runs == 2


def test_what_is_kept_is_bounded_and_cannot_be_changed():
    session = Counting()
    recorded = Recorded(session, limit_bytes=40)
    for value in (1.0, 2.0, 1.0, 2.0):
        found = recorded({"x": np.full(4, value)})["y"]
        assert found[0] == 2 * value
        if value == 1:
            with pytest.raises(ValueError, match="read-only"):
                found[0] = 5
    assert session.runs == 3


def test_other_values_than_arrays_are_not_kept():
    session = Counting(lambda feeds: [feeds["x"]])
    recorded = Recorded(session)
    recorded({"x": np.ones(2)})
    recorded({"x": np.ones(2)})
    assert session.runs == 2
