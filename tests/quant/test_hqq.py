"""Half-quadratic quantization: its objective falls, for each kind of format."""

import numpy as np
import pytest

from lwqc.quant.block_scale import full_range
from lwqc.quant.formats import WeightFormat
from lwqc.quant.hqq import hqq
from lwqc.quant.range_search import encode
from lwqc.quant.unit_grid import round_to_grid
from tests.build import normal


def loss(weight, encoded, power=0.7):
    """Sum of |error|^power per output channel."""
    return (np.abs(encoded.decode() - weight).astype(np.float64) ** power).sum(axis=1)


def heavy(n, k, seed=0):
    return np.random.default_rng(seed).standard_t(3, (n, k)).astype(np.float32)


@pytest.mark.parametrize("weight", [normal(64, 256), heavy(64, 256)], ids=["normal", "heavy"])
@pytest.mark.parametrize("text", ["w2b32", "w3b64", "w4b32", "w2b64a", "w3b32a", "w4b128a", "w4ca"])
def test_its_objective_is_below_that_of_the_plain_range(weight, text):
    fmt = WeightFormat.parse(text)
    plain, found = encode(weight, fmt, search=False), hqq(weight, fmt)
    assert loss(weight, found).sum() < 0.98 * loss(weight, plain).sum()


@pytest.mark.parametrize("text", ["w4b32", "w3b32a"])
def test_no_block_gets_worse_than_its_plain_range(text):
    weight, fmt = heavy(200, 32), WeightFormat.parse(text)
    columns = np.ascontiguousarray(weight.T)
    scale, zero = full_range(columns, fmt)
    values = round_to_grid(columns, scale, zero, fmt) * scale
    plain = (np.abs(values - columns).astype(np.float64) ** 0.7).sum(axis=0)
    assert (loss(weight, hqq(weight, fmt)) <= 1.0001 * plain).all()


def test_it_differs_from_the_least_squares():
    weight, fmt = heavy(64, 256), WeightFormat(3, 64, False)
    nearest, found = encode(weight, fmt), hqq(weight, fmt)
    assert loss(weight, found).sum() < loss(weight, nearest).sum()
    assert loss(weight, found, 2).sum() > loss(weight, nearest, 2).sum()


@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_the_size_of_the_weights_does_not_matter(factor):
    weight, fmt = heavy(16, 64), WeightFormat(4, 32, False)
    scaled = hqq(weight * np.float32(factor), fmt)
    agree = np.mean(scaled.codes == hqq(weight, fmt).codes)
    assert agree > 0.99  # but for ties that float32 rounds the other way
