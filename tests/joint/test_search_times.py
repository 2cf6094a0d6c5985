"""Time beside sites is shared out by what the profiler tells of each operator."""

from __future__ import annotations

import pytest

from lwqc.search_space import Written
from lwqc.search_times import _shared_out


def test_types_get_their_own_time_and_the_rest_goes_by_bytes() -> None:
    made = tuple(
        Written(op, elements)
        for op, elements in (("Attention", 1), ("Attention", 3), ("Relu", 10), ("Add", 30))
    )
    times = [b.milliseconds for b in _shared_out(made, 10.0, {"Attention": 4.0, "Gelu": 9.0})]
    assert times == pytest.approx([1.0, 3.0, 1.5, 4.5])


def test_a_profile_that_claims_more_than_there_is_is_scaled_down() -> None:
    made = (Written("Attention", 1), Written("", 5), Written("Add", 1))
    times = [b.milliseconds for b in _shared_out(made, 2.0, {"Attention": 4.0})]
    assert times == pytest.approx([2.0, 0.0, 0.0])
