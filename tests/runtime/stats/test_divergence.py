import math

import numpy as np
import pytest

from lwqc.runtime.stats.divergence import DivergenceMeter, LossMeter
from tests.build import normal


def measure(*pairs):
    meter = DivergenceMeter()
    for a, b in pairs:
        meter.add(a, b)
    return meter.result()


def test_identical_outputs():
    a = normal(4, 10)
    found = measure((a, a.copy()))
    assert (found.cosine_mean, found.cosine_min, found.max_abs, found.kl) == (1, 1, 0, 0)
    assert math.isinf(found.sqnr_db)
    assert found.drop == 0
    assert found.relative_error == 0


def test_numbers_agree_with_their_definitions():
    a, b = normal(4, 10).astype(np.float64), normal(4, 10, seed=1).astype(np.float64)
    found = measure((a[:1], b[:1]), (a[1:], b[1:]))
    cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    p, q = (np.exp(v) / np.exp(v).sum(1, keepdims=True) for v in (a, b))
    assert found.samples == 4
    assert found.cosine_mean == pytest.approx(cosines.mean())
    assert found.cosine_min == pytest.approx(cosines.min())
    assert found.max_abs == pytest.approx(np.abs(a - b).max())
    assert found.sqnr_db == pytest.approx(10 * np.log10((a**2).sum() / ((a - b) ** 2).sum()))
    assert found.kl == pytest.approx((p * np.log(p / q)).sum(1).mean())
    assert found.decisions.top_1 == np.mean(a.argmax(1) == b.argmax(1))
    assert found.channel_axis == 1
    pooled = ((a - b) ** 2).mean() / a.var()  # four values of a channel tell no spread
    assert found.error == pytest.approx(pooled)
    assert found.drop == pytest.approx(pooled / 2)
    assert found.relative_error == pytest.approx(((a - b) ** 2).sum() / (a**2).sum())


def test_nan_in_the_candidate_is_as_bad_as_can_be():
    a = normal(2, 5)
    b = a.copy()
    b[1, 2] = np.nan
    found = measure((a, b))
    assert found.cosine_min == -1
    assert found.sqnr_db == -math.inf


def test_zero_outputs_that_stay_zero_are_identical():
    a = np.zeros((2, 5), np.float32)
    assert measure((a, a)).cosine_min == 1
    assert measure((a, a + 1)).cosine_min == 0


def test_integers_count_equal_elements():
    found = measure((np.array([[1, 2], [3, 4]]), np.array([[1, 2], [3, 5]])))
    assert found.decisions.labels == 0.75
    assert found.drop == 0.25


def test_outputs_of_another_size_count_by_it():
    found = measure((normal(8, 3), normal(6, 3)), (normal(8, 3), normal(8, 3)))
    assert found.decisions.sizes == 0.75
    assert found.drop >= 0.25


def test_what_is_nan_or_infinite_in_both_is_no_difference():
    a = normal(4, 20)
    a[0, 3], a[1, 4] = np.nan, -np.inf
    assert measure((a, a.copy())).drop == 0
    b = a.copy()
    b[2, 5] = np.nan
    assert measure((a, b)).drop == math.inf


@pytest.mark.parametrize("shape", [(4, 7), (2, 5, 3), (1, 80, 3), (3,), ()])
def test_a_loss_is_what_the_divergence_says(shape):
    rng = np.random.default_rng(0)
    whole, short = DivergenceMeter(), LossMeter()
    for _ in range(2):
        a = rng.random(shape).astype(np.float32)
        b = (a + 0.1 * rng.random(shape)).astype(np.float32)
        for meter in (whole, short):
            meter.add(a, b)
            meter.add(np.arange(4), np.array([0, 1, 2, 4]))
            meter.add(np.zeros(3), np.zeros(2))
    found, expected = short.result(), whole.result()
    assert (found.error, found.decisions) == (expected.error, expected.decisions)
    assert found.drop == expected.drop > 0


def test_classes_that_became_others_are_counted():
    meter = DivergenceMeter()
    classes = np.eye(4, dtype=np.float32)
    meter.add(classes[[0, 1, 2, 3]], classes[[0, 2, 2, 1]])
    meter.add(classes[[1, 3]], classes[[2, 3]])
    assert meter.result().flips == ((1, 2, 2), (3, 1, 1))
