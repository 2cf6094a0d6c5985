"""The refit against numpy's least squares, and its limits."""

import numpy as np
import pytest

from lwqc.quant.refit import bias_correction, refit


def problem(seed=0, rows=400, k=8, m=5, out=3, noise=0.3):
    """Correlated inputs x [rows, k], of which y keeps the first m, with noise and a mean."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, k)) @ rng.standard_normal((k, k)) + rng.standard_normal(k)
    y = x[:, :m] + noise * rng.standard_normal((rows, m))
    target = rng.standard_normal((out, k))
    return x, y, target


def sums(x, y):
    return y.T @ y, x.T @ y, x.sum(0), y.sum(0), len(x)


def test_without_ridge_it_is_least_squares():
    x, y, target = problem()
    weight, shift = refit(target[:, :5], target, *sums(x, y), damp=0.0, has_bias=True)
    exact = np.linalg.lstsq(np.c_[y, np.ones(len(y))], x @ target.T, rcond=None)[0]
    # The least ridge, 1e-5 of the mean square, moves it a little.
    np.testing.assert_allclose(weight, exact[:-1].T, rtol=1e-2, atol=1e-2)
    np.testing.assert_allclose(shift, exact[-1], rtol=1e-2, atol=1e-2)
    weight, shift = refit(target[:, :5], target, *sums(x, y), damp=0.0)
    exact = np.linalg.lstsq(y, x @ target.T, rcond=None)[0]
    np.testing.assert_allclose(weight, exact.T, rtol=1e-2, atol=1e-2)
    assert not shift.any()


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("damp", [0.01, 0.3])
def test_it_minimises_its_objective(has_bias, damp):
    x, y, target = problem(1)
    old = target[:, :5]
    best, shift = refit(old, target, *sums(x, y), damp=damp, has_bias=has_bias)
    centred = y - y.mean(0) if has_bias else y
    ridge = damp * np.mean((centred**2).sum(0)) + 1e-5 * np.mean((y**2).sum(0))

    def objective(weight):
        error = x @ target.T - y @ weight.T
        error -= error.mean(0) if has_bias else 0
        return (error**2).sum() + ridge * ((weight - old) ** 2).sum()

    least, rng = objective(best), np.random.default_rng(2)
    for step in (1e-3, 1e-1):
        for _ in range(10):
            assert objective(best + step * rng.standard_normal(best.shape)) > least
    error = (x @ target.T - y @ best.T).mean(0)
    np.testing.assert_allclose(shift, error if has_bias else 0, atol=1e-9)


def test_nothing_to_learn_leaves_the_weight():
    x, _, target = problem(3)
    old = target[:, :5]
    for data in (np.zeros((50, 8)), x[:0], np.full((50, 8), np.nan)):
        weight, shift = refit(old, target, *sums(data, data[:, :5]), has_bias=True)
        np.testing.assert_array_equal(weight, old)
        np.testing.assert_array_equal(shift, 0)


def test_unchanged_input_leaves_the_weight():
    x, _, target = problem(4)
    weight, shift = refit(target, target, *sums(x, x), has_bias=True)
    np.testing.assert_allclose(weight, target, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(shift, 0, atol=1e-9)


def test_a_constant_input_moves_only_the_bias():
    x = np.tile(np.arange(1.0, 9.0), (50, 1))
    target = np.random.default_rng(5).standard_normal((3, 8))
    weight, shift = refit(target[:, :5], target, *sums(x, x[:, :5]), has_bias=True)
    np.testing.assert_allclose(weight, target[:, :5], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(shift, x[0, 5:] @ target[:, 5:].T, rtol=1e-6)


def test_fewer_rows_than_features_and_no_damping():
    x, y, target = problem(6, rows=3, noise=0)
    weight, shift = refit(target[:, :5], target, *sums(x, y), damp=0.0, has_bias=True)
    assert np.isfinite(weight).all()
    before = x @ target.T - y @ target[:, :5].T
    assert np.abs(x @ target.T - y @ weight.T - shift).max() < 0.01 * np.abs(before).max()


def test_an_indefinite_sum_is_damped_until_it_is_not():
    x, y, target = problem(7)
    gram, *rest = sums(x, y)
    weight, _ = refit(target[:, :5], target, gram - 2 * np.diag(np.diag(gram)), *rest, damp=1e-9)
    assert np.isfinite(weight).all()


def test_bias_correction_restores_the_mean():
    x, y, target = problem(8)
    shift = bias_correction(target[:, :5], target, x.sum(0), y.sum(0), len(x))
    mean = (y @ target[:, :5].T + shift).mean(0)
    np.testing.assert_allclose(mean, (x @ target.T).mean(0))
    assert not bias_correction(target[:, :5], target, x.sum(0), y.sum(0), 0).any()
