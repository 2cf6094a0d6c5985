"""Weights that break careless arithmetic, in every method and kind of format."""

import warnings
from typing import get_args

import numpy as np
import pytest

from lwqc.errors import InputError
from lwqc.quant.formats import WeightFormat
from lwqc.quant.methods import METHODS, Method, encode_by
from tests.build import normal
from tests.quant.correlated import layer

SYMMETRIC = ["w2b16", "w3b32h", "w4c", "w8b32", "nf4b16", "fp4b32h"]
FORMATS = [*SYMMETRIC, "w2ca", "w3b16a", "w4b32ah", "w8b64a"]
every_method = pytest.mark.parametrize("method", METHODS)
every_format = pytest.mark.parametrize("text", FORMATS)


@pytest.fixture(autouse=True)
def _numpy_is_quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        yield


def quantized(method, weight, text, gram=None):
    k = weight.shape[1]
    gram = layer(1, k)[1] if gram is None else gram
    encoded = encode_by(method, weight, WeightFormat.parse(text), gram[None])
    assert np.isfinite(encoded.scale).all()
    assert (encoded.scale != 0).all()
    return encoded.decode()


def test_the_list_of_methods_is_that_of_plans():
    assert get_args(Method) == METHODS


@every_method
@pytest.mark.parametrize("text", SYMMETRIC)
def test_zeros_stay_zero(method, text):
    """Inputs do not hang together here: methods that look at them may move zeros on purpose."""
    weight = normal(8, 70)
    weight[:, ::3] = 0
    weight[2] = 0
    weight[3, :64] = 0
    decoded = quantized(method, weight, text, np.diag(np.linspace(0.1, 3, 70)))
    assert (decoded[weight == 0] == 0).all()


@every_method
@every_format
def test_a_weight_of_zeros_is_zeros(method, text):
    assert not quantized(method, np.zeros((3, 40), np.float32), text).any()


@every_method
@every_format
@pytest.mark.parametrize("value", [0.5, -3.0, 1e-3])
@pytest.mark.parametrize("shape", [(1, 1), (3, 32), (2, 40)])
def test_constant_weights_come_back(method, text, value, shape):
    weight = np.full(shape, value, np.float32)
    decoded = quantized(method, weight, text, np.eye(shape[1]))
    np.testing.assert_allclose(decoded, weight, rtol=2e-3)


@every_method
@every_format
def test_one_weight_per_channel_comes_back(method, text):
    weight = normal(9, 1)
    weight[4] = 0
    np.testing.assert_allclose(quantized(method, weight, text), weight, rtol=2e-3)


@every_method
@every_format
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite_weights_are_refused(method, text, bad):
    weight = normal(4, 40)
    weight[2, 5] = bad
    with pytest.raises(InputError, match="NaN or infinity"):
        quantized(method, weight, text)


@every_method
@every_format
def test_denormal_weights_become_zeros(method, text):
    weight = normal(4, 40) * np.float32(1e-40)
    assert np.abs(quantized(method, weight, text)).max() <= 1e-37


@every_method
@every_format
def test_denormal_weights_among_others_become_zeros(method, text):
    weight = normal(4, 64)
    weight[:, 3] = 1e-41
    decoded = quantized(method, weight, text, np.diag(np.linspace(0.1, 3, 64)))
    assert np.abs(decoded[:, 3]).max() == 0


@every_method
@every_format
def test_huge_weights_are_refused_with_the_reason(method, text):
    weight = normal(4, 40) * np.float32(1e35)
    with pytest.raises(InputError, match=r"above 1e\+30"):
        quantized(method, weight, text)


@every_method
@every_format
def test_large_weights_work_or_are_refused(method, text):
    """Up to 1e30 with float32 scales; float16 ones end at 65504."""
    weight = normal(4, 40) * np.float32(1e29)
    if text.endswith("h"):
        with pytest.raises(InputError, match="too large for float16"):
            quantized(method, weight, text)
    else:
        decoded = quantized(method, weight, text)
        assert np.square(decoded / 1e29 - weight / 1e29).mean() < 0.5


@every_method
@every_format
def test_tiny_weights_keep_their_relative_error(method, text):
    """Steps far above the smallest normal float32; float16 scales end at 6e-8."""
    weight = normal(8, 64)
    scaled = weight * np.float32(1e-3 if text.endswith("h") else 1e-30)
    small, usual = (quantized(method, w, text) for w in (scaled, weight))
    factor = scaled[0, 0] / weight[0, 0]
    before, after = (float(np.square(d).mean()) for d in (usual - weight, small / factor - weight))
    assert after <= 1.1 * before + 1e-6
