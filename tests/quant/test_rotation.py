"""Randomised Hadamard matrices: orthogonal, reproducible, and they spread outliers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lwqc.quant.rotation import Rotation, hadamard

sizes = st.integers(1, 96)
seeds = st.integers(0, 2**32)


@given(sizes, seeds)
def test_matrix_is_orthogonal_and_follows_its_seed(n, seed):
    q = hadamard(n, seed)
    assert q.shape == (n, n)
    assert q.dtype == np.float64
    assert np.abs(q @ q.T - np.eye(n)).max() <= 1e-12
    assert (q == hadamard(n, seed)).all()


@given(sizes, seeds, st.sampled_from([0, 1, -1]))
def test_applying_is_multiplying(n, seed, axis):
    values = np.random.default_rng(seed).standard_normal((n, n))
    q = hadamard(n, seed)
    expected = q.T @ values if axis == 0 else values @ q
    assert np.abs(Rotation(n, seed).apply(values, axis) - expected).max() <= 1e-12


@pytest.mark.parametrize("n", [64, 128, 4096, 384, 896])
def test_every_row_is_flat(n):
    """Size 2^k gives ±1/sqrt(n); otherwise an outlier stays within an odd block of m channels."""
    entry = np.abs(Rotation(n, 3).apply(np.eye(n)[:4])).max()
    odd = n // (n & -n)
    assert entry <= np.sqrt(odd / n) * (1 + 1e-12)


def test_seeds_differ():
    assert np.abs(hadamard(48, 0) - hadamard(48, 1)).max() > 0.1
