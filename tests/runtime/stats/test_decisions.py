"""How sure a share of decisions is."""

from __future__ import annotations

import numpy as np
import pytest

from lwqc.runtime.stats.decisions import DecisionMeter


def counted(same: int, of: int):
    meter = DecisionMeter()
    reference = np.zeros(of, np.int64)
    value = np.where(np.arange(of) < same, 0, 1)
    for half in (slice(0, of // 2), slice(of // 2, of)):
        meter.add_labels(reference[half], value[half])
    return meter.result()


@pytest.mark.parametrize(
    ("same", "of", "low", "high"),
    [  # by scipy 1.17.1, binomtest(same, of).proportion_ci(method="wilson")
        (8, 10, 0.4901625, 0.9433178),
        (81, 263, 0.2552885, 0.3662096),
        (10, 10, 0.7224672, 1.0),
        (0, 20, 0.0, 0.1611252),
    ],
)
def test_intervals_are_those_of_wilson(same, of, low, high) -> None:
    found = counted(same, of)
    assert found.counted == {"labels": of}
    assert found.interval("labels") == pytest.approx((low, high), abs=1e-6)
