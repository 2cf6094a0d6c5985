"""Damping by what half of the rows make of the other half; statistics by halves."""

import numpy as np
import pytest

from lwqc.quant.refit import Moments, held_out_damp, refit
from lwqc.runtime.session import statistics_session
from lwqc.runtime.stats.collect import collect
from lwqc.runtime.stats.cross_gram import CrossGram
from lwqc.runtime.stats.halved import Halved
from tests.build import model, normal

OUT, FULL, KEPT = 6, 40, 24


def inputs(rows, seed):
    """Rows of 40 features that a few hidden ones make, with noise."""
    mix = normal(8, FULL, seed=3)
    return normal(rows, 8, seed=seed) @ mix + 0.7 * normal(rows, FULL, seed=seed + 1)


def moments(x):
    y = x[:, :KEPT]
    return Moments(y.T @ y, x.T @ y, x.sum(0), y.sum(0), len(x))


def fit(x, damp, has_bias):
    target = normal(OUT, FULL, seed=9)
    m = moments(x)
    return refit(
        target[:, :KEPT], target, m.gram, m.cross, m.left_sum, m.right_sum, m.rows, damp, has_bias
    )


def error(x, fitted):
    weight, shift = fitted
    return np.square(x @ normal(OUT, FULL, seed=9).T - x[:, :KEPT] @ weight.T - shift).mean()


def chosen(x, has_bias=False):
    target = normal(OUT, FULL, seed=9)
    halves = (moments(x[::2]), moments(x[1::2]))
    return held_out_damp(target[:, :KEPT], target, halves, has_bias)


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("rows", [20, 32])
def test_few_rows_are_damped_so_that_new_ones_fare_better(rows, has_bias):
    x, new = inputs(rows, 20), inputs(4000, 50)
    damp = chosen(x, has_bias)
    assert damp > 0.01
    assert error(new, fit(x, damp, has_bias)) < 0.95 * error(new, fit(x, 0.01, has_bias))


def test_plenty_of_rows_are_damped_as_ever():
    assert chosen(inputs(2 * 64 * KEPT + 2, 20)) == 0.01
    few = inputs(1, 20)
    target = normal(OUT, FULL, seed=9)
    empty = Moments(*(np.zeros_like(a) for a in (moments(few).gram, moments(few).cross)),
                    np.zeros(FULL), np.zeros(KEPT), 0)  # fmt: skip
    assert held_out_damp(target[:, :KEPT], target, (moments(few), empty), False) == 0.01
    assert chosen(np.full((20, FULL), np.nan)) == 0.01


FIRST, SECOND = (0, 3, 5, 6), (1, 2, 4, 7)  # by the Thue-Morse sequence


@pytest.mark.parametrize("count", [1, 2, 8])
def test_each_half_has_its_runs(count):
    built = model([("Relu", ["x"], "y", {})], {}, {"x": ["rows", 5]}, ["y"])
    data = [{"x": normal(3 + i, 5, seed=i)} for i in range(count)]
    plain = CrossGram("x", "y")
    found = collect(built, [Halved(plain), plain], data, statistics_session)
    halves, whole = found[Halved(plain)], found[plain]
    assert halves.runs == count
    for half, turns in ((halves.first, FIRST), (halves.second, SECOND)):
        runs = [data[i]["x"] for i in turns if i < count]
        if not runs:
            assert half is None
            continue
        rows = np.concatenate(runs)
        assert half.rows == len(rows)
        np.testing.assert_allclose(half.left[0], rows.sum(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(halves.whole.gram, whole.gram, rtol=1e-5)


def test_halves_of_two_sets_of_runs_add_up():
    built = model([("Relu", ["x"], "y", {})], {}, {"x": ["rows", 5]}, ["y"])
    data = [{"x": normal(3 + i, 5, seed=i)} for i in range(5)]
    halved = Halved(CrossGram("x", "y"))
    for cut in (1, 3):
        one, other = (
            collect(built, [halved], d, statistics_session)[halved]
            for d in (data[:cut], data[cut:])
        )
        added = one + other
        assert added.runs == 5
        assert added.first.rows + added.second.rows == sum(len(d["x"]) for d in data)


@pytest.mark.parametrize("turn", [1, 2, 3])
def test_kinds_of_data_in_turns_are_in_both_halves(turn):
    """Else what one half makes of the other is how far the kinds lie apart."""
    built = model([("Relu", ["x"], "y", {})], {}, {"x": ["rows", 5]}, ["y"])
    kinds = [i // turn % 2 for i in range(24)]
    data = [{"x": np.full((4, 5), 10.0 * kind + 1, np.float32)} for kind in kinds]
    halved = Halved(CrossGram("x", "y"))
    found = collect(built, [halved], data, statistics_session)[halved]
    means = [half.left[0, 0] / half.rows for half in (found.first, found.second)]
    assert abs(means[0] - means[1]) < 2
