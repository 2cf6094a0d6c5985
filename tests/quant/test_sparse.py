"""2:4 sparsity: the pattern, and errors at the output that fall from method to method."""

import numpy as np
import pytest

from lwqc.quant.sparse import (
    by_magnitude,
    by_sparsegpt,
    exchanged,
    is_two_of_four,
)


def error(weight, sparse, gram):
    d = (weight - sparse).astype(np.float64)
    return float(np.einsum("nk,kl,nl->", d, gram, d))


@pytest.fixture
def case():
    rng = np.random.default_rng(0)
    basis = rng.standard_normal((64, 64)) * np.exp(rng.standard_normal(64))[:, None]
    x = rng.standard_normal((512, 64)) @ basis
    return rng.standard_normal((24, 64)).astype(np.float32), x.T @ x / len(x)


def test_the_two_smallest_of_four_go():
    weight = np.array([[1, -4, 2, 3, 0, 0, 5, -1]], np.float32)
    found = by_magnitude(weight)
    np.testing.assert_array_equal(found, [[0, -4, 0, 3, 0, 0, 5, -1]])
    assert is_two_of_four(found)
    assert not is_two_of_four(weight)


def test_methods_that_see_the_data_lose_less(case):
    weight, gram = case
    plain = by_magnitude(weight)
    swapped = exchanged(weight, plain, gram)
    solved = by_sparsegpt(weight, gram)
    assert is_two_of_four(swapped)
    assert is_two_of_four(solved)
    np.testing.assert_array_equal(swapped[swapped != 0], weight[swapped != 0])
    errors = [error(weight, w, gram) for w in (plain, swapped, solved)]
    assert errors[1] < 0.8 * errors[0]
    assert errors[2] < 0.95 * errors[1]


def test_an_exchange_never_makes_it_worse(case):
    weight, _ = case
    best = exchanged(weight, by_sparsegpt(weight, np.eye(64)), np.eye(64))
    again = exchanged(weight, by_magnitude(weight), np.eye(64))
    np.testing.assert_array_equal(again, by_magnitude(weight))
    assert error(weight, best, np.eye(64)) <= error(weight, by_magnitude(weight), np.eye(64)) + 1e-6


def test_independent_inputs_make_sparsegpt_magnitude_pruning(case):
    weight, _ = case
    np.testing.assert_allclose(by_sparsegpt(weight, np.eye(64)), by_magnitude(weight), atol=1e-6)
