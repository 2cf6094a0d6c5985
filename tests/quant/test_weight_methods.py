"""What all weight methods have in common."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lwqc.quant.coordinate_descent import coordinate_descent, refit_scales
from lwqc.quant.formats import WeightFormat
from lwqc.quant.forward_substitution import forward_substitution
from lwqc.quant.gpfq import gpfq
from lwqc.quant.gptq import gptq
from lwqc.quant.grid import pack, unpack
from lwqc.quant.hqq import hqq
from lwqc.quant.k_quant import k_quant
from lwqc.quant.output_error import output_error
from lwqc.quant.range_search import encode
from lwqc.quant.unit_grid import code_range
from tests.build import normal
from tests.quant.correlated import layer
from tests.quant.test_formats import formats

METHODS = {
    "hqq": lambda w, f, h: hqq(w, f),
    "k-quant": lambda w, f, h: k_quant(w, f),
    "gptq": gptq,
    "gptq-refit": lambda w, f, h: gptq(w, f, h, scales="refit"),
    "gptq-order": lambda w, f, h: gptq(w, f, h, order="activation"),
    "gpfq": gpfq,
    "descent": lambda w, f, h: coordinate_descent(w, encode(w, f), h),
    "scales": lambda w, f, h: refit_scales(w, encode(w, f), h),
}


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=25, deadline=None)
@given(formats, st.integers(1, 12), st.integers(1, 70), st.integers(0, 99))
def test_codes_are_those_of_the_format(method, fmt, n, k, seed):
    weight, gram = layer(n, k, seed, rows=max(2, k // 2))
    found = METHODS[method](weight, fmt, gram)
    plain = encode(weight, fmt)
    assert found.format == fmt
    assert found.k == k
    for ours, theirs in ((found.codes, plain.codes), (found.zero, plain.zero)):
        assert ours.shape == theirs.shape
        assert ours.dtype == np.uint8
    assert found.scale.shape == plain.scale.shape
    lowest, highest = code_range(fmt)
    assert found.codes.min() >= lowest
    assert found.codes.max() <= highest
    if fmt.symmetric:
        assert (found.zero == fmt.implicit_zero).all()
    if fmt.scale == "float16":
        assert np.array_equal(found.scale, found.scale.astype(np.float16))
    padding = found.codes.reshape(n, -1)[:, k:]
    assert (padding == found.zero[:, -1:]).all()
    bits = fmt.storage_bits
    packed = pack(found.codes, bits)
    assert np.array_equal(unpack(packed, bits, found.codes.shape[2]), found.codes)
    decoded = found.decode()
    assert decoded.shape == (n, k)
    assert np.isfinite(decoded).all()


@pytest.mark.parametrize("method", METHODS)
def test_storage_order_and_type_of_the_weight_do_not_matter(method):
    weight, gram = layer(20, 50)
    fmt = WeightFormat(4, 32)
    first = METHODS[method](weight, fmt, gram)
    for same in (np.asfortranarray(weight), weight.astype(np.float64)):
        assert np.array_equal(METHODS[method](same, fmt, gram).codes, first.codes)


@pytest.mark.parametrize("method", METHODS)
def test_arguments_are_left_alone(method):
    weight, gram = layer(8, 40)
    before = weight.copy(), gram.copy()
    METHODS[method](weight, WeightFormat(4, 16, False), gram)
    assert np.array_equal(weight, before[0])
    assert np.array_equal(gram, before[1])


@given(st.integers(0, 40), st.integers(0, 99))
def test_forward_substitution_is_the_plain_double_loop(k, seed):
    rng = np.random.default_rng(seed)
    start, coupling = rng.standard_normal((k, 3)), rng.standard_normal((k, k)) / 8
    plain, blocked, entered = start.copy(), start.copy(), []
    for i in range(k):
        plain[i + 1 :] -= np.outer(coupling[i, i + 1 :], np.tanh(plain[i]))
    forward_substitution(
        blocked, coupling, lambda i: np.tanh(blocked[i]), lambda a, b: entered.append((a, b))
    )
    np.testing.assert_allclose(blocked, plain, rtol=1e-9, atol=1e-9)
    for size in (1, 4, 16):
        spans = [(i, min(i + size, k)) for i in range(0, k, size)]
        assert set(spans) <= set(entered)
    assert len(set(entered)) == len(entered)


def test_importance_shifts_the_error():
    weight = normal(50, 64)
    counts = np.exp(np.random.default_rng(0).standard_normal(64))
    for text in ("w2b32", "w4b32a", "w4c"):
        fmt = WeightFormat.parse(text)
        plain, weighed = encode(weight, fmt), encode(weight, fmt, importance=counts)
        before, after = (((e.decode() - weight) ** 2 * counts).sum() for e in (plain, weighed))
        assert after < before


@pytest.mark.parametrize("text", ["w2b16a", "w4b32h", "w4c", "w8b64"])
def test_equal_importance_changes_nothing(text):
    weight, fmt = normal(20, 50), WeightFormat.parse(text)
    plain, weighed = encode(weight, fmt), encode(weight, fmt, importance=np.full(50, 3.0))
    assert np.array_equal(plain.codes, weighed.codes)
    assert np.array_equal(plain.scale, weighed.scale)


def test_output_error_is_that_of_the_outputs():
    x, weight = normal(100, 16, seed=1), normal(8, 16)
    other = weight + normal(8, 16, seed=2, scale=0.1)
    expected = np.square(x @ (weight - other).T).sum() / np.square(x @ weight.T).sum()
    gram = (x.T @ x / 100).astype(np.float64)
    assert output_error(weight, other, gram) == pytest.approx(expected, rel=1e-4)
    assert output_error(weight, weight, gram) == 0
    assert output_error(0 * weight, 0 * weight, gram) == 0
    assert output_error(0 * weight, weight, gram) == np.inf


@pytest.mark.parametrize("fmt", ["int8_channel", "int4_b16"])
@pytest.mark.parametrize("method", ["gptq", "gptq-refit", "gptq-order"])
def test_groups_at_once_are_the_groups_one_by_one(method, fmt):
    kind = (
        WeightFormat(bits=8, symmetric=True)
        if fmt == "int8_channel"
        else WeightFormat(bits=4, block=16)
    )
    parts = [layer(6, 20, seed) for seed in range(5)]
    weight, grams = np.concatenate([w for w, _ in parts]), np.stack([h for _, h in parts])
    together = METHODS[method](weight, kind, grams)
    alone = [METHODS[method](w, kind, h) for w, h in parts]
    assert np.array_equal(together.codes, np.concatenate([a.codes for a in alone]))
    assert np.allclose(together.scale, np.concatenate([a.scale for a in alone]), rtol=1e-5)
