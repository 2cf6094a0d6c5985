"""The fit of k-quants: its weighted error, zero points, lines."""

import numpy as np
import pytest

from lwqc.quant.formats import WeightFormat
from lwqc.quant.k_quant import k_quant, line
from lwqc.quant.range_search import encode
from tests.build import normal


def loss(weight, encoded):
    """Squared error with importance sqrt(mean(w²) + w²) of each block."""
    n, k = weight.shape
    blocks = weight.reshape(n, -1, encoded.codes.shape[2]).astype(np.float64)
    counts = np.sqrt(blocks**2 + (blocks**2).mean(axis=2, keepdims=True))
    return float((counts.reshape(n, k) * (encoded.decode() - weight) ** 2).sum())


@pytest.mark.parametrize(
    "text", ["w2b32", "w3b64", "w4b32", "w2b64a", "w3b32a", "w4b128a", "w8b32a"]
)
def test_its_error_is_below_that_of_the_plain_range(text):
    weight, fmt = normal(64, 256), WeightFormat.parse(text)
    assert loss(weight, k_quant(weight, fmt)) < loss(weight, encode(weight, fmt, search=False))


@pytest.mark.parametrize("text", ["w3b32a", "w4b32a", "w4b64a"])
def test_the_zero_point_is_searched_too(text):
    """Where the zero point is free, fitting it beats the search over scales alone."""
    weight, fmt = normal(64, 256) + np.float32(0.5), WeightFormat.parse(text)
    found, searched = k_quant(weight, fmt), encode(weight, fmt)
    assert not np.array_equal(found.zero, searched.zero)
    assert loss(weight, found) < loss(weight, searched)


def test_a_line_is_found():
    q = np.random.default_rng(0).integers(0, 16, (16, 3)).astype(np.float32)
    scale, zero = np.float32([0.5, 2, 1e-3]), np.float32([3, 7, 15])
    old = np.ones(3, np.float32), np.zeros(3, np.float32)
    for counts in (None, np.abs(normal(16, 3)) + np.float32(0.1)):
        found = line((q - zero) * scale, q, counts, old)
        np.testing.assert_allclose(found[0], scale, rtol=1e-4)
        np.testing.assert_allclose(found[1], zero, atol=1e-3)


def test_no_line_is_the_old_answer():
    old = np.float32([3, 3]), np.float32([5, 5])
    q = np.stack([np.full(16, 7), np.arange(16)], axis=1).astype(np.float32)
    u = np.stack([np.arange(16), -np.arange(16)], axis=1).astype(np.float32)  # equal codes; falling
    found = line(u, q, None, old)
    assert np.array_equal(found[0], old[0])
    assert np.array_equal(found[1], old[1])
