"""Choices of scales: formulas, dead channels, and never worse than no scales at all."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lwqc.errors import InputError
from lwqc.quant.formats import WeightFormat
from lwqc.quant.migration import (
    LEAST,
    MOST,
    awq,
    channel_max,
    equalise,
    normalised,
    percentile,
    smoothquant,
)
from lwqc.quant.output_error import output_error
from lwqc.quant.range_search import encode
from tests.build import normal
from tests.quant.test_formats import formats

W4 = WeightFormat(4, 16)
positive = st.floats(1e-3, 1e3)


def test_smoothquant():
    x, w = np.array([16.0, 1.0, 4.0]), np.array([1.0, 4.0, 4.0])
    assert smoothquant(x, w).tolist() == [4.0, 0.5, 1.0]
    assert smoothquant(x, w, alpha=1).tolist() == x.tolist()
    assert np.allclose(smoothquant(x, w, alpha=0), 1 / w)


@given(st.lists(st.tuples(positive, positive), min_size=1, max_size=20))
def test_smoothquant_makes_both_sides_alike_at_one_half(pairs):
    x, w = np.array(pairs).T
    s = smoothquant(x, w)
    assert np.allclose(x / s, w * s)


@given(st.lists(st.tuples(positive, positive), min_size=1, max_size=20))
def test_equalised_weights_have_the_same_range(pairs):
    out, into = np.array(pairs).T
    s = equalise(out, into)
    assert np.allclose(out / s, np.sqrt(out * into))
    assert np.allclose(into * s, np.sqrt(out * into))


def test_percentile_scales_down_only_the_largest():
    x = np.arange(1.0, 1002.0)
    s = percentile(x, share=0.005)
    assert (s[:996] == 1).all()
    assert np.allclose(x[996:] / s[996:], 996)
    assert (percentile(x, share=0) == 1).all()


@pytest.mark.parametrize("choose", [smoothquant, equalise])
def test_dead_channels_keep_their_scale(choose):
    alive, dead = 4.0, [0.0, 1e-42]
    for a, b in [(alive, d) for d in dead] + [(d, alive) for d in dead] + [(0.0, 0.0)]:
        s = choose(np.array([a, 9.0]), np.array([b, 1.0]))
        assert s.tolist() == [1.0, 3.0]


@pytest.mark.parametrize("choose", [smoothquant, equalise])
def test_bounds(choose):
    s = choose(np.array([1e20, 1e-20]), np.array([1e-20, 1e20]))
    assert s.tolist() == [MOST, LEAST]


def test_percentile_of_dead_channels():
    assert (percentile(np.zeros(5)) == 1).all()
    assert percentile(np.zeros(0)).size == 0
    assert percentile(np.array([1e-30, 1e30]), share=1).max() == MOST


@pytest.mark.parametrize("choose", [smoothquant, equalise])
@pytest.mark.parametrize(
    ("a", "b"),
    [
        (np.ones(3), np.ones(4)),
        (np.ones((2, 2)), np.ones((2, 2))),
        (np.array([np.nan]), np.ones(1)),
        (np.array([np.inf]), np.ones(1)),
        (-np.ones(1), np.ones(1)),
    ],
)
def test_bad_input(choose, a, b):
    with pytest.raises(InputError, match="scales"):
        choose(a, b)


def test_normalised_has_geometric_mean_one():
    s = normalised(np.array([2.0, 8.0, 0.0]), np.array([True, True, False]))
    assert s.tolist() == [0.5, 2.0, 1.0]
    assert normalised(np.zeros(2), np.zeros(2, bool)).tolist() == [1.0, 1.0]


def layer(n, k, seed, loud=0.1):
    """A weight and the Gram matrix of inputs of which some channels are loud."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((4 * k, k)) * np.where(rng.random(k) < loud, 20.0, 1.0)
    return normal(n, k, seed=seed), x.T @ x / len(x)


def error(weights, s, gram, fmt, features=None):
    by_input = s if features is None else s[features]
    rows = np.concatenate(weights)
    scaled = (rows * by_input).astype(np.float32)
    return output_error(rows, encode(scaled, fmt).decode() / by_input, gram)


@settings(max_examples=40, deadline=None)
@given(formats, st.integers(1, 3), st.integers(1, 20), st.integers(1, 70), st.integers(0, 99))
def test_awq_is_never_worse_than_rounding_to_nearest(fmt, count, n, k, seed):
    _, gram = layer(n, k, seed)
    weights = [normal(n, k, seed=seed + i) for i in range(count)]
    s = awq(weights, gram, fmt, grid=5)
    assert s.shape == (k,)
    assert (s > 0).all()
    assert error(weights, s, gram, fmt) <= error(weights, np.ones(k), gram, fmt) * (1 + 1e-6)


def test_awq_halves_the_error_of_a_layer_with_loud_inputs():
    weight, gram = layer(64, 128, seed=1, loud=0.03)
    s = awq([weight], gram, W4)
    assert error([weight], s, gram, W4) < 0.5 * error([weight], np.ones(128), gram, W4)
    assert np.isclose(np.log(s).mean(), 0)


def test_awq_takes_the_best_of_its_candidates():
    weight, gram = layer(16, 48, seed=3)
    size = np.sqrt(np.diagonal(gram))
    candidates = [normalised(size**a) for a in np.linspace(0, 1, 5)]
    errors = [error([weight], s, gram, W4) for s in candidates]
    assert np.allclose(awq([weight], gram, W4, grid=4), candidates[int(np.argmin(errors))])


def test_awq_with_dead_inputs():
    weight, gram = layer(8, 32, seed=2, loud=0.3)
    weight[:, 3] = 0
    gram[5] = gram[:, 5] = 0
    s = awq([weight], gram, W4)
    assert s[3] == s[5] == 1
    assert np.isfinite(s).all()
    assert (awq([np.zeros_like(weight)], gram, W4) == 1).all()
    assert (awq([weight], np.zeros_like(gram), W4) == 1).all()


def test_awq_of_channels_that_several_inputs_share():
    weight, gram = layer(8, 32, seed=4, loud=0.3)
    features = np.concatenate([np.arange(10), np.arange(10), np.full(12, -1)])
    s = awq([weight], gram, W4, features=features)
    assert s.shape == (10,)
    plain = error([weight], np.ones(32), gram, W4)
    assert error([weight], np.append(s, 1.0), gram, W4, features) <= plain


def test_awq_checks_the_gram_matrix():
    with pytest.raises(InputError, match="Gram"):
        awq([normal(4, 8)], np.eye(7), W4)


def test_channel_max():
    w = np.array([[1.0, -5.0], [3.0, 2.0]])
    assert channel_max(w, np.array([[0, 1]]), 3).tolist() == [3.0, 5.0, 0.0]
    assert channel_max(w, np.array([[1], [-1]]), 2).tolist() == [0.0, 5.0]
