"""GPTQ against its definition, against round to nearest, and on odd inputs."""

import gc
import weakref

import numpy as np
import pytest

from lwqc.errors import InputError
from lwqc.quant import gptq as gptq_module
from lwqc.quant.formats import WeightFormat
from lwqc.quant.forward_substitution import forward_substitution
from lwqc.quant.gptq import gptq
from lwqc.quant.gram_matrix import damped, importance, inverse_factor
from lwqc.quant.output_error import output_error
from lwqc.quant.range_search import encode
from lwqc.quant.unit_grid import code_range
from tests.build import normal
from tests.quant.correlated import inputs, layer

FORMATS = ["w2b32", "w2b32a", "w3b32", "w3b64a", "w4b32h", "w4b64a", "w4c", "w8c", "w8b128a"]
FORMATS += ["nf4b64h", "fp4b32"]


def by_definition(weight, fmt, gram, order, damp=0.01):
    """Round a column, then solve for all columns not yet rounded: values [N, K]."""
    start = encode(weight, fmt, importance=importance(gram, damp))
    limits = code_range(fmt)
    hessian = damped(gram, damp)
    left, wanted = list(order), weight.astype(np.float64)
    values = np.empty_like(wanted)
    while left:
        j, left = left[0], left[1:]
        block = j // (fmt.block or len(gram))
        scale, zero = start.scale[:, block], start.zero[:, block].astype(np.float64)
        codes = np.clip(np.rint(wanted[:, j] / scale) + zero, *limits)
        values[:, j] = (codes - zero) * scale
        error = wanted[:, j] - values[:, j]
        if left:
            share = np.linalg.solve(hessian[np.ix_(left, left)], hessian[left, j])
            wanted[:, left] += np.outer(error, share)
    return values


@pytest.mark.parametrize("order", ["none", "activation"])
@pytest.mark.parametrize("text", ["w2b16", "w3b16", "w3b32a", "w4b32a", "w4c"])
def test_it_is_the_sequence_of_least_squares(text, order):
    weight, gram = layer(12, 50)
    fmt = WeightFormat.parse(text)
    visited = np.argsort(-np.diagonal(gram)) if order == "activation" else range(50)
    expected = by_definition(weight, fmt, gram, visited)
    found = gptq(weight, fmt, gram, order=order).decode()
    # float32 against float64 may round a tie the other way, after which a row differs.
    same = np.isclose(found, expected, rtol=1e-5, atol=1e-6).all(axis=1)
    assert same.sum() >= 11


def test_the_factor_is_that_of_the_inverse():
    _, gram = layer(1, 40)
    upper = inverse_factor(gram, 0.01)
    assert not np.tril(upper, -1).any()
    np.testing.assert_allclose(upper.T @ upper @ damped(gram, 0.01), np.eye(40), atol=1e-9)


@pytest.mark.parametrize("text", FORMATS)
@pytest.mark.parametrize("options", [{}, {"order": "activation"}, {"scales": "refit"}])
def test_it_differs_from_rounding_and_beats_it(text, options):
    weight, gram = layer(64, 160)
    fmt = WeightFormat.parse(text)
    nearest, found = encode(weight, fmt), gptq(weight, fmt, gram, **options)
    assert not np.array_equal(nearest.codes, found.codes)
    before = output_error(weight, nearest.decode(), gram)
    # A factor read below its diagonal propagates nothing: the ratio would be 1.
    assert output_error(weight, found.decode(), gram) < 0.5 * before


def test_ratios_on_a_larger_layer():
    weight, gram = layer(256, 512)
    fmt = WeightFormat(4, 32)
    nearest = output_error(weight, encode(weight, fmt).decode(), gram)
    ratio = {
        name: output_error(weight, gptq(weight, fmt, gram, **options).decode(), gram) / nearest
        for name, options in {
            "frozen": {},
            "refit": {"scales": "refit"},
            "activation": {"order": "activation"},
        }.items()
    }
    print("error over that of rounding to nearest:", ratio)
    assert ratio["frozen"] < 0.35
    assert ratio["refit"] < ratio["frozen"]
    assert ratio["activation"] < 0.8 * ratio["frozen"]


def test_it_holds_on_inputs_it_has_not_seen():
    x = inputs(4096, 128)
    weight = normal(64, 128)
    seen, unseen = x[:2048].T @ x[:2048] / 2048, x[2048:].T @ x[2048:] / 2048
    fmt = WeightFormat(4, 32)
    before = output_error(weight, encode(weight, fmt).decode(), unseen)
    after = output_error(weight, gptq(weight, fmt, seen, order="activation").decode(), unseen)
    assert after < 0.5 * before


@pytest.mark.parametrize("text", FORMATS)
@pytest.mark.parametrize("options", [{}, {"order": "activation"}, {"scales": "refit"}])
def test_uncorrelated_inputs_give_round_to_nearest(text, options):
    weight, fmt = normal(20, 90), WeightFormat.parse(text)
    nearest, found = encode(weight, fmt), gptq(weight, fmt, 3 * np.eye(90), **options)
    assert np.array_equal(found.codes, nearest.codes)
    assert np.array_equal(found.scale, nearest.scale)
    assert np.array_equal(found.zero, nearest.zero)


@pytest.mark.parametrize("options", [{}, {"order": "activation"}, {"scales": "refit"}])
def test_inputs_that_never_fire_are_rounded_to_nearest(options):
    weight, gram = layer(30, 70)
    dead = [0, 5, 69]
    gram[dead] = gram[:, dead] = 0
    for fmt in (WeightFormat(4, 32), WeightFormat(3, 16, False), WeightFormat(8)):
        found = gptq(weight, fmt, gram, **options)
        scale = np.repeat(found.scale, found.codes.shape[2], axis=1)[:, dead]
        steps = np.abs((found.decode() - weight)[:, dead] / scale)
        inside = (found.codes > 1) & (found.codes < 2**fmt.bits - 1)
        assert (steps <= 0.501)[inside.reshape(30, -1)[:, dead]].all()


@pytest.mark.parametrize("gram", [np.zeros((40, 40)), np.ones((40, 40)), -np.eye(40)])
def test_degenerate_gram_matrices_give_finite_weights(gram):
    for options in ({}, {"order": "activation"}, {"scales": "refit"}):
        decoded = gptq(normal(5, 40), WeightFormat(4, 32), gram, **options).decode()
        assert np.isfinite(decoded).all()


def test_no_inputs_seen_is_round_to_nearest():
    weight, fmt = normal(5, 40), WeightFormat(4, 32)
    assert np.array_equal(gptq(weight, fmt, np.zeros((40, 40))).codes, encode(weight, fmt).codes)


def test_activation_order_keeps_codes_where_they_are():
    weight, gram = layer(16, 100)
    weight[:, 40] = 0.0
    gram[40] = gram[:, 40] = 0
    found = gptq(weight, WeightFormat(4, 32), gram, order="activation")
    assert not found.decode()[:, 40].any()
    frozen = encode(weight, WeightFormat(4, 32), importance=importance(gram, 0.01))
    assert np.array_equal(found.scale, frozen.scale)


@pytest.mark.parametrize(
    ("gram", "message"),
    [(np.eye(31), "expected shape"), (np.full((32, 32), np.nan), "NaN or infinity")],
)
def test_bad_gram_matrices_are_refused(gram, message):
    with pytest.raises(InputError, match=message):
        gptq(normal(4, 32), WeightFormat(4, 32), gram)


def test_refit_in_activation_order_is_refused():
    with pytest.raises(InputError, match="order 'none'"):
        gptq(normal(4, 32), WeightFormat(4), np.eye(32), order="activation", scales="refit")


@pytest.mark.parametrize("options", [{}, {"order": "activation"}, {"scales": "refit"}])
def test_a_large_matrix_some_rows_at_a_time(monkeypatch, options):
    weight, gram = layer(64, 160)
    fmt = WeightFormat.parse("w4b32h")
    whole = gptq(weight, fmt, gram, **options)
    monkeypatch.setattr(gptq_module, "AT_ONCE", 24 * 160)
    parts = gptq(weight, fmt, gram, **options)
    np.testing.assert_array_equal(whole.scale[:24], parts.scale[:24])
    assert parts.codes.shape == whole.codes.shape
    # Products of matrices of another size may be summed in another order.
    assert (parts.codes == whole.codes).mean() > 0.99
    assert output_error(weight, parts.decode(), gram) < 1.01 * output_error(
        weight, whole.decode(), gram
    )


def test_nothing_of_the_work_outlives_it():
    """A recursive closure kept three copies of a weight until garbage was collected."""
    pending = normal(64, 32)
    gone = weakref.ref(pending)
    gc.disable()
    try:
        forward_substitution(pending, np.eye(64, dtype=np.float32), lambda i: np.zeros(32))
        del pending
        assert gone() is None
    finally:
        gc.enable()


def test_refitted_scales_are_those_of_the_least_squares_answer_of_all_that_is_free():
    weight, gram = layer(12, 48)
    fmt = WeightFormat.parse("w4b16")
    found = gptq(weight, fmt, gram, scales="refit")
    hessian = damped(gram, 0.01)
    for start in (16, 32):
        done, free = slice(0, start), slice(start, None)
        error = (weight - found.decode())[:, done]
        left = weight[:, free] + error @ hessian[done, free] @ np.linalg.inv(hessian[free, free])
        counts = importance(gram, 0.01)[start : start + 16]
        wanted = encode(left[:, :16].astype(np.float32), fmt, importance=counts).scale[:, 0]
        same = np.isclose(found.scale[:, start // 16], wanted, rtol=1e-4)
        assert same.sum() >= 11  # a tie may be rounded the other way
