"""GPFQ in Gram form against GPFQ on the inputs themselves."""

import numpy as np
import pytest

from lwqc.quant.formats import WeightFormat
from lwqc.quant.gpfq import gpfq
from lwqc.quant.gram_matrix import importance
from lwqc.quant.output_error import output_error
from lwqc.quant.range_search import encode
from lwqc.quant.unit_grid import code_range
from tests.build import normal
from tests.quant.correlated import inputs, layer


def by_definition(weight, fmt, x, y):
    """The path u [rows, N] followed sample by sample: values [N, K].

    Damping is K samples in which one input fires, with a hundredth of the mean energy.
    """
    rows, k = len(y), weight.shape[1]
    start = encode(weight, fmt, importance=importance(y.T @ y / rows, 0.01))
    ridge = np.sqrt(0.01 * np.square(y).sum() / k) * np.eye(k)
    x, y = np.concatenate([x, ridge]), np.concatenate([y, ridge])
    path = np.zeros((len(y), len(weight)))
    values = np.empty(weight.shape)
    for t in range(weight.shape[1]):
        block = t // (fmt.block or weight.shape[1])
        scale, zero = start.scale[:, block], start.zero[:, block].astype(np.float64)
        path += np.outer(x[:, t], weight[:, t].astype(np.float64))
        wanted = y[:, t] @ path / (y[:, t] @ y[:, t])
        codes = np.clip(np.rint(wanted / scale) + zero, *code_range(fmt))
        values[:, t] = (codes - zero) * scale
        path -= np.outer(y[:, t], values[:, t])
    return values


@pytest.mark.parametrize("text", ["w2b16", "w3b32", "w4b32a", "w4c"])
@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_it_follows_the_path(text, noise):
    x, weight, fmt = inputs(200, 50), normal(12, 50), WeightFormat.parse(text)
    y = x + noise * np.random.default_rng(1).standard_normal(x.shape)
    gram, cross = y.T @ y / 200, x.T @ y / 200
    found = gpfq(weight, fmt, gram, cross if noise else None).decode()
    same = np.isclose(found, by_definition(weight, fmt, x, y), rtol=1e-5, atol=1e-6).all(axis=1)
    assert same.sum() >= 11  # float32 rounding may break a tie the other way


@pytest.mark.parametrize("text", ["w2b32", "w3b32a", "w4b32h", "w4b64a", "w4c", "nf4b64", "fp4b32"])
def test_it_beats_rounding_on_correlated_inputs(text):
    weight, gram = layer(64, 160)
    fmt = WeightFormat.parse(text)
    before = output_error(weight, encode(weight, fmt).decode(), gram)
    assert output_error(weight, gpfq(weight, fmt, gram).decode(), gram) < 0.6 * before


def test_it_makes_up_for_inputs_that_changed():
    x, weight, fmt = inputs(1000, 64), normal(32, 64), WeightFormat(4, 32)
    y = np.clip(x, -1.0, 1.0)
    gram, cross = y.T @ y / 1000, x.T @ y / 1000

    def error(encoded):
        return np.square(x @ weight.T - y @ encoded.decode().T).sum()

    assert error(gpfq(weight, fmt, gram, cross)) < 0.9 * error(gpfq(weight, fmt, gram))


def test_uncorrelated_inputs_give_round_to_nearest():
    weight, fmt = normal(20, 90), WeightFormat(4, 32, False)
    assert np.array_equal(gpfq(weight, fmt, np.eye(90)).codes, encode(weight, fmt).codes)


def test_inputs_that_never_fire_are_rounded_to_nearest():
    weight, fmt = normal(20, 90), WeightFormat(4, 32)
    assert np.array_equal(gpfq(weight, fmt, np.zeros((90, 90))).codes, encode(weight, fmt).codes)
