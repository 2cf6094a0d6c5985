"""Float16 as a format of weights."""

import numpy as np
import pytest

from lwqc.errors import InputError
from lwqc.quant.formats import WeightFormat
from lwqc.quant.half import FORMAT, encode_half, fits_half
from lwqc.quant.methods import encode_by
from tests.build import normal


def test_its_name_and_its_size():
    assert str(FORMAT) == "fp16"
    assert WeightFormat.parse("fp16") == FORMAT
    assert FORMAT.size_bytes(3, 5) == 30


@pytest.mark.parametrize("fields", [{"block": 32}, {"symmetric": False}])
def test_it_has_no_blocks_and_no_zero_point(fields):
    with pytest.raises(InputError, match="fp16 has 16 bits, no block and no zero point"):
        WeightFormat(16, kind="fp16", **fields)


@pytest.mark.parametrize(("bits", "kind"), [(16, "int"), (8, "fp16")])
def test_16_bits_are_nothing_else(bits, kind):
    with pytest.raises(InputError, match=r"bits must be one of|fp16 has 16 bits"):
        WeightFormat(bits, kind=kind)


@pytest.mark.parametrize("method", ["rtn", "k-quant", "gptq-order"])
def test_every_method_rounds_to_the_nearest_half(method):
    weight = normal(6, 10, scale=0.1)
    gram = np.eye(10)[np.newaxis]
    found = encode_by(method, weight, FORMAT, gram)
    assert np.array_equal(found.decode(), weight.astype(np.float16).astype(np.float32))
    assert found.codes.nbytes == FORMAT.size_bytes(6, 10)


def test_transposed_weights():
    weight = normal(10, 6).T
    assert np.abs(encode_half(weight).decode() - weight).max() <= 2.0**-11 * np.abs(weight).max()


def test_numbers_beyond_its_range():
    assert fits_half(0.0)
    assert fits_half(1.0)
    assert not fits_half(1e5)
    assert not fits_half(1e-6)
    with pytest.raises(InputError, match="float16 has not"):
        encode_half(np.full((2, 2), 1e5, np.float32))
