"""Scales of blocks that are whole multiples of one scale per channel."""

import numpy as np
import pytest

from lwqc.errors import InputError
from lwqc.quant.dual_grained import multiples
from lwqc.quant.formats import WeightFormat
from lwqc.quant.methods import encode_by
from lwqc.quant.range_search import encode
from lwqc.quant.unit_grid import unit_values
from tests.build import normal
from tests.quant.correlated import energy, layer

FORMATS = ["dgw8b32", "dgw7b32", "dgw8b128", "e2m1w8b16", "e2m1w7b32"]


def integers(encoded):
    """What a kernel multiplies: codes times multiples."""
    values = unit_values(encoded.codes, encoded.zero[..., None], encoded.format)
    return values * multiples(encoded)[..., None].astype(np.float32)


@pytest.mark.parametrize("method", ["rtn", "gptq", "gptq-order", "gpfq", "descent"])
@pytest.mark.parametrize("text", FORMATS)
def test_the_weight_is_integers_of_8_bits_times_a_scale_per_channel(text, method):
    weight, gram = layer(24, 130)
    fmt = WeightFormat.parse(text)
    found = encode_by(method, weight, fmt, gram[None])
    whole = integers(found)
    assert np.array_equal(whole, np.rint(whole))
    assert np.abs(whole).max() <= 2 ** (fmt.product - 1) - 1
    if fmt.kind == "e2m1":
        assert set(np.abs(multiples(found)).ravel()) <= {1, 2, 4, 8}
    again = whole.reshape(24, -1)[:, :130] * found.channel[:, None]
    np.testing.assert_allclose(again, found.decode(), rtol=1e-6)


def test_integer_scales_cost_little_beside_floats():
    weight, gram = layer(64, 256)
    lost = {
        text: energy(encode_by("gptq", weight, WeightFormat.parse(text), gram[None]).decode()
                     - weight, gram)
        for text in ("w4b32", "dgw8b32", "dgw7b32")
    }  # fmt: skip
    assert lost["w4b32"] < lost["dgw8b32"] < 1.08 * lost["w4b32"]
    assert lost["dgw8b32"] < lost["dgw7b32"] < 1.25 * lost["w4b32"]


def test_the_search_of_the_channel_is_worth_its_while():
    """The least scale with which the widest block has the largest multiple is one of the tries."""
    weight = normal(32, 256, seed=3) * np.exp(normal(32, 256, seed=4))
    fmt = WeightFormat.parse("dgw7b32")
    first = encode(weight, WeightFormat(4, 32)).scale
    channel = np.abs(first).max(1, keepdims=True) / fmt.largest_multiple
    scale = np.sign(first) * channel * np.maximum(np.rint(np.abs(first) / channel), 1)
    blocks = weight.reshape(32, -1, 32)
    plain = np.clip(np.rint(blocks / scale[..., None]), -8, 7) * scale[..., None] - blocks
    searched = encode(weight, fmt).decode() - weight
    assert (searched**2).sum() < 0.99 * (plain**2).sum()


def test_empty_blocks_and_rows_do_not_widen_the_others():
    weight = normal(6, 96, scale=1e-3)
    weight[2, 32:64] = 0
    weight[4] = 0
    fmt = WeightFormat.parse("dgw8b32")
    found = encode(weight, fmt).decode()
    assert not found[4].any()
    assert not found[2, 32:64].any()
    assert np.abs(found - weight).max() < 1e-3


def test_methods_that_move_scales_are_refused():
    weight, gram = layer(8, 32)
    for method in ("gptq-refit", "hqq", "k-quant"):
        with pytest.raises(InputError, match="grained scales stay"):
            encode_by(method, weight, WeightFormat.parse("dgw8b32"), gram[None])
