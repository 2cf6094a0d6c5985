"""What a metric's value says of a loss."""

import math

import pytest

from lwqc.runtime.measure import Metric


@pytest.mark.parametrize("higher", [True, False])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_finite_number_is_as_bad_as_can_be(higher, value):
    """An infinite accuracy is a fault of the metric, and no gain."""
    assert Metric("m", lambda run: 0.0, higher).drop(0.5, value) == math.inf
