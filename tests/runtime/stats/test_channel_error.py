"""No output and no channel hides behind a larger one."""

import numpy as np
import pytest

from lwqc.runtime.stats.channel_error import ChannelMeter, channel_axis
from lwqc.runtime.stats.divergence import DivergenceMeter
from tests.build import normal


def errors(*pairs):
    meter = ChannelMeter()
    for a, b in pairs:
        meter.add(a, b)
    return meter.result()


def detections(seed: int = 0) -> np.ndarray:
    """As a detector writes them, [images, 4 sizes to 320 and 3 scores to 1, positions]."""
    rng = np.random.default_rng(seed)
    boxes = rng.uniform(0, 320, (4, 4, 100))
    scores = 1 / (1 + np.exp(-3 * rng.standard_normal((4, 3, 100)) + 3))
    return np.concatenate([boxes, scores], 1).astype(np.float32)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x)
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize(
    ("array", "axis"),
    [
        (np.float32(1.0), None),
        (normal(5), None),
        (normal(6, 10), 1),
        (normal(2, 30, 20) * np.exp(normal(20, seed=1)), 2),
        (detections(), 1),
        (normal(2, 8, 20, 20) * np.exp(normal(8, 1, 1, seed=1)), 1),
        (normal(2, 20, 20, 8) * np.exp(2 * normal(8, seed=1)), 3),
        (softmax(normal(2, 20, 30)), 2),
        (normal(2, 1, 20, 20) * np.exp(2 * normal(20, seed=1)), 1),  # a map is one channel
    ],
)
def test_the_axis_of_channels_is_found(array, axis):
    assert channel_axis(np.asarray(array)) == axis


def test_scores_do_not_hide_behind_boxes():
    """What a cosine calls 0.9999 when all scores are noise."""
    a = detections()
    b = a.copy()
    b[:, 4:] = detections(1)[:, 4:]
    meter = DivergenceMeter()
    meter.add(a, b)
    found = meter.result()
    assert found.cosine_mean > 0.9999
    assert found.drop > 0.3
    assert found.worst_channel[0] >= 4
    assert found.decisions.strongest is not None
    assert found.decisions.strongest < 0.3


def test_the_error_of_a_channel_is_relative_to_its_own_variance():
    a = normal(400, 3) * [1, 100, 0.01] + [0, 50, 0]
    noise = 0.1 * normal(400, 3, seed=1) * [1, 100, 0.01]
    found = errors((a[:100], a[:100] + noise[:100]), (a[100:], a[100:] + noise[100:]))
    assert found.errors == pytest.approx((noise**2).mean(0) / a.var(0))
    assert found.relative == pytest.approx(0.01, rel=0.2)


def test_one_lost_channel_of_a_thousand_shows():
    a = normal(64, 1000)
    b = a.copy()
    b[:, 7] = 0
    found = errors((a, b))
    assert found.worst == 7
    assert found.relative / 2 > 0.01


def test_probabilities_of_one_distribution_are_one_channel():
    """The spread of classes that never come up is no measure."""
    a = softmax(normal(32, 500) + 8 * np.eye(500)[:32])
    b = a + 1e-6 * np.abs(normal(32, 500, seed=1))
    found = errors((a, b))
    assert len(found.errors) == 1
    assert found.relative < 1e-6


def test_a_constant_channel_is_measured_by_its_own_size_and_one_of_zeros_by_the_others():
    a = normal(50, 3)
    a[:, 0], a[:, 1] = 10, 0
    b = a + np.array([0.1, 0.1, 0.0])
    found = errors((a, b)).errors
    assert found[0] == pytest.approx(1.0)
    assert found[1] == pytest.approx(0.01 / ((a[:, 2].var() + 0.01) / 3), rel=0.5)
    assert found[2] == 0


def test_a_channel_that_training_let_die_is_one_of_zeros_and_a_mask_hides_nothing():
    """Two of all-MiniLM-L6-v2 are at 1e-33; logits of masked classes at -1e9 and beyond."""
    a = normal(50, 3) * [1e-33, 1, 1]
    assert errors((a, a + np.array([1e-9, 0, 0]))).errors[0] < 1e-12
    for mask in (-1e9, float(np.finfo(np.float32).min)):
        masked = normal(50, 3) + np.array([0, 0, mask])
        other = normal(50, 3, seed=1) + np.array([0, 0, mask])
        assert errors((masked, other)).errors[:2].min() > 0.5


def test_widths_that_change_from_batch_to_batch():
    a, b = normal(2, 30, 6), normal(2, 30, 9)
    found = errors((a, a), (b, b + 0.1))
    assert len(found.errors) == 15
    assert (found.errors[:6] == 0).all()
    assert (found.errors[6:] > 0).all()


def test_positions_nearly_as_strong_are_as_good():
    a = np.full((1, 2, 80), 0.1, np.float32)
    a[0, 0] /= 50
    a[0, :, 5], a[0, :, 6] = (0.09, 0.9), (0.0895, 0.895)
    b = a.copy()
    b[0, 0, 6] = 0.091
    meter = DivergenceMeter()
    meter.add(a, b)
    assert meter.result().decisions.strongest == 1
    b[0, 1, 7] = 0.95
    meter.add(a, b)
    assert meter.result().decisions.strongest == 0.75


def test_features_that_stay_below_one_are_no_scores():
    a = np.maximum(0.2 * normal(2, 10, 10), 0).transpose(0, 2, 1)
    meter = DivergenceMeter()
    meter.add(np.tile(a, (1, 1, 10)), np.tile(a, (1, 1, 10)) + 1e-3)
    assert meter.result().decisions.strongest is None


def test_detections_above_the_threshold_are_counted():
    a = np.array([[0.9, 0.2, 0.6]]).T
    b = np.array([[0.9, 0.7, 0.4]]).T
    meter = DivergenceMeter()
    meter.add(a, b)
    assert meter.result().decisions.detections == pytest.approx(1 / 3)
