"""The float formats: their values, nearest values, and what they are good for."""

import numpy as np
import pytest
from scipy.stats import norm

from lwqc.quant.codebook import LEVELS, codes_of_levels, nearest_level
from lwqc.quant.formats import WeightFormat
from lwqc.quant.range_search import encode
from tests.build import normal

kinds = pytest.mark.parametrize("kind", ["nf4", "fp4"])


@kinds
def test_values_hold_zero_and_both_ends(kind):
    levels = LEVELS[kind]
    assert levels.shape == (16,)
    assert levels.min() == -1
    assert levels.max() == 1
    assert levels[WeightFormat(4, 64, kind=kind).implicit_zero] == 0


def test_nf4_values_are_quantiles_of_the_normal_distribution():
    """2305.14314: halves of evenly spaced quantiles with a common zero, the largest being 1."""
    edge = 0.9677083
    positive = norm.ppf(np.linspace(edge, 0.5, 9)[:-1])
    negative = -norm.ppf(np.linspace(edge, 0.5, 8)[:-1])
    expected = np.sort(np.concatenate([positive, negative, [0]])) / positive.max()
    np.testing.assert_allclose(LEVELS["nf4"], expected, atol=2e-6)


@kinds
def test_the_nearest_value_is_found(kind):
    values = np.random.default_rng(0).uniform(-1.5, 1.5, 2000).astype(np.float32)
    found = nearest_level(values, kind)
    best = np.abs(values[:, None] - LEVELS[kind]).min(axis=1)
    np.testing.assert_allclose(np.abs(values - found), best, atol=1e-7)
    assert np.array_equal(LEVELS[kind][codes_of_levels(found, kind)], found)


@kinds
def test_what_is_on_the_grid_comes_back(kind):
    # Every block has a full range, so that the plain scale is the true one.
    weight = np.tile(LEVELS[kind], (6, 4)) * np.float32([[0.1], [1], [2], [3], [40], [500]])
    decoded = encode(weight, WeightFormat(4, 16, kind=kind)).decode()
    np.testing.assert_allclose(decoded, weight, rtol=1e-6)


def test_nf4_beats_the_integer_grid_on_normal_weights():
    weight = normal(64, 512)

    def error(text):
        return float(((encode(weight, WeightFormat.parse(text)).decode() - weight) ** 2).mean())

    assert error("nf4b64") < 0.95 * error("w4b64")
    assert error("w4b64") < error("fp4b64")
