"""Codebooks: what they hold, and what each step of fitting them gains."""

import numpy as np
import pytest

from lwqc.errors import InputError
from lwqc.quant.formats import WeightFormat, codebook_formats
from lwqc.quant.methods import encode_by
from lwqc.quant.output_error import output_error
from tests.build import normal
from tests.quant.correlated import layer


def correlated(k: int) -> np.ndarray:
    """A Gram matrix [k, k]."""
    return layer(4, k)[1]


WEIGHT = normal(48, 64, seed=3)
GRAM = correlated(64)[None]


def error(fmt: str, method: str, weight=WEIGHT, gram=GRAM) -> float:
    encoded = encode_by(method, weight, WeightFormat.parse(fmt), gram)
    return output_error(weight, encoded.decode(), gram)


def test_each_step_lowers_the_error_at_the_output():
    found = [error("vq5x2", m) for m in ("rtn", "gptq", "gptq-refit", "descent")]
    assert found == sorted(found, reverse=True)
    assert found[-1] < 0.6 * found[0]


@pytest.mark.parametrize("dim", [1, 2, 4])
def test_a_weight_of_few_vectors_is_exact(dim):
    vectors = normal(4, dim, seed=1).astype(np.float16).astype(np.float32)
    picked = np.random.default_rng(0).integers(0, 4, (12, 16))
    weight = vectors[picked].transpose(0, 2, 1).reshape(12 * dim, 16)
    for method, gram in (("rtn", None), ("descent", correlated(16)[None])):
        encoded = encode_by(method, weight, WeightFormat.parse(f"vq3x{dim}"), gram)
        assert np.allclose(encoded.decode(), weight, atol=1e-3)
    assert encoded.codes.shape == (16, 12)


def test_bands_have_codebooks_of_their_own_where_they_cost_little():
    fmt = WeightFormat.parse("vq2x1")
    weight = np.repeat(np.array([1.0, 100.0], np.float32), 512)[:, None] * normal(1024, 64)
    assert fmt.codebooks(*weight.shape) >= 2
    assert fmt.codebooks(48, 64) == 1
    encoded = encode_by("rtn", weight, fmt, None)
    lower = output_error(weight[:512], encoded.decode()[:512], None)
    assert lower < 0.2  # with one codebook all of these are one centroid
    codes = -(-weight.size // 8) * 2
    assert fmt.size_bytes(*weight.shape) == codes + encoded.books.size * 2


def test_groups_of_a_convolution_share_a_codebook_and_have_their_own_inputs():
    grams = np.stack([correlated(9), 100 * correlated(9)[::-1, ::-1]])
    weight = normal(24, 9, seed=5)
    found = {m: error("vq4x2", m, weight, grams) for m in ("rtn", "descent")}
    assert found["descent"] < found["rtn"]
    with pytest.raises(InputError, match="1 outputs have the same inputs"):
        encode_by("gptq", normal(2, 9), WeightFormat.parse("vq4x2"), grams)


def test_outputs_that_fill_no_vector_are_cut_off():
    weight = normal(7, 16)
    encoded = encode_by("descent", weight, WeightFormat.parse("vq6x4"), correlated(16)[None])
    assert encoded.codes.shape == (16, 2)
    assert encoded.decode().shape == (7, 16)


def test_the_same_input_gives_the_same_codes():
    first, second = (
        encode_by("descent", WEIGHT, WeightFormat.parse("vq5x2"), GRAM) for _ in range(2)
    )
    assert np.array_equal(first.codes, second.codes)
    assert np.array_equal(first.books, second.books)


@pytest.mark.parametrize("method", ["hqq", "k-quant", "gpfq"])
def test_methods_that_fit_no_codebook_say_so(method):
    with pytest.raises(InputError, match=f"not by {method}"):
        error("vq5x2", method)


def test_numbers_beyond_float16_are_refused():
    with pytest.raises(InputError, match="float16 has not"):
        error("vq5x2", "rtn", 1e6 * WEIGHT)


def test_large_vectors_are_for_large_weights():
    assert WeightFormat.parse("vq8x4") not in codebook_formats(1 << 16)
    assert WeightFormat.parse("vq8x4") in codebook_formats(1 << 20)
