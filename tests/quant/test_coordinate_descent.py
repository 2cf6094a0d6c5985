"""Coordinate descent never makes things worse, and stops where no single change helps."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lwqc.quant.coordinate_descent import coordinate_descent, refit_scales
from lwqc.quant.formats import WeightFormat
from lwqc.quant.gptq import gptq
from lwqc.quant.gram_matrix import damped
from lwqc.quant.output_error import output_error
from lwqc.quant.range_search import encode
from tests.build import normal
from tests.quant.correlated import energy, layer
from tests.quant.test_formats import formats


def best_of_all(weight, start, gram):
    """Least error of each row over all codes at the scales of `start` (one block)."""
    levels = np.arange(2**start.format.bits)
    every = np.array(list(itertools.product(levels, repeat=start.k)), np.float64)
    errors = []
    for row, scale, zero in zip(weight, start.scale[:, 0], start.zero[:, 0], strict=True):
        e = row - (every - float(zero)) * scale
        errors.append(np.einsum("ij,jk,ik->i", e, gram, e).min())
    return np.array(errors)


def row_errors(weight, encoded, gram):
    e = weight.astype(np.float64) - encoded.decode()
    return np.einsum("ij,jk,ik->i", e, gram, e)


@pytest.mark.parametrize("symmetric", [True, False])
def test_close_to_the_best_of_all_codes(symmetric):
    weight, gram = layer(100, 4, seed=3)
    fmt = WeightFormat(2, None, symmetric)
    start = gptq(weight, fmt, gram, damp=0.0)
    best = best_of_all(weight, start, gram)
    nearest = row_errors(weight, encode(weight, fmt), gram)
    ours = row_errors(weight, start, gram)
    descended = coordinate_descent(weight, start, gram, damp=0.0, sweeps=4, refit_scales=False)
    improved = row_errors(weight, descended, gram)
    assert (ours >= best * (1 - 1e-3)).all()
    assert (improved >= best * (1 - 1e-3)).all()
    assert (improved <= ours * (1 + 1e-3)).all()
    assert improved.sum() < 1.1 * best.sum() < ours.sum() * 1.1 < nearest.sum() * 1.1


@settings(max_examples=60, deadline=None)
@given(formats, st.integers(1, 12), st.integers(1, 70), st.integers(0, 99), st.booleans())
def test_the_error_never_grows(fmt, n, k, seed, scales):
    weight, gram = layer(n, k, seed, rows=k)
    encoded = encode(weight, fmt)
    for damp in (0.0, 0.05):
        hessian = damped(gram, damp)
        before = energy(weight - encoded.decode(), hessian)
        for sweeps in (1, 2, 4):
            done = coordinate_descent(
                weight, encoded, gram, damp=damp, sweeps=sweeps, refit_scales=scales
            )
            after = energy(weight - done.decode(), hessian)
            assert after <= before * (1 + 1e-5) + 1e-9  # values are rounded to float32
            before = after


def test_no_single_code_can_improve_the_result():
    weight, gram = layer(6, 20)
    fmt = WeightFormat(2, 32)
    found = coordinate_descent(
        weight, encode(weight, fmt), gram, damp=0.0, sweeps=20, refit_scales=False
    )
    best = energy(weight - found.decode(), gram)
    for row, column, code in itertools.product(range(6), range(20), range(4)):
        kept = found.codes[row, 0, column]
        found.codes[row, 0, column] = code
        assert energy(weight - found.decode(), gram) >= best * (1 - 1e-3)
        found.codes[row, 0, column] = kept


def test_scales_of_one_block_are_least_squares():
    weight, gram = layer(10, 32)
    start = encode(weight, WeightFormat(4, 32))
    found = refit_scales(weight, start, gram)
    root = np.linalg.cholesky(gram)
    for row, codes, scale in zip(weight, start.codes[:, 0], found.scale[:, 0], strict=True):
        centred = (codes.astype(np.float64) - 8) @ root
        expected = np.linalg.lstsq(centred[:, None], row @ root, rcond=None)[0]
        assert scale == pytest.approx(expected[0], rel=1e-5)
    assert np.array_equal(found.codes, start.codes)


@pytest.mark.parametrize("text", ["w2b32", "w2b16ah", "w3b32", "w4b32", "w4b64ah", "w4c", "nf4b64"])
def test_each_method_improves_on_the_one_before(text):
    weight, gram = layer(64, 160)
    fmt = WeightFormat.parse(text)
    start = gptq(weight, fmt, gram, order="activation")
    steps = [encode(weight, fmt), gptq(weight, fmt, gram), start]
    steps.append(coordinate_descent(weight, start, gram))
    errors = [output_error(weight, step.decode(), gram) for step in steps]
    print(text, errors)
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.995 * errors[-2] < 0.3 * errors[0]


def test_inputs_that_never_fire_keep_their_codes():
    weight, gram = layer(10, 50)
    gram[7] = gram[:, 7] = 0
    start = encode(weight, WeightFormat(4, 32))
    found = coordinate_descent(weight, start, gram, damp=0.0)
    assert np.array_equal(found.codes[:, 0, 7], start.codes[:, 0, 7])
    assert not np.array_equal(found.codes, start.codes)


def test_uncorrelated_inputs_change_nothing():
    weight = normal(10, 50)
    start = encode(weight, WeightFormat(4, 32, False))
    found = coordinate_descent(weight, start, np.eye(50), refit_scales=False)
    assert np.array_equal(found.codes, start.codes)
