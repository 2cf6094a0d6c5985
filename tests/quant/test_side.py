"""Side branches in float: what they save, and that codes and factors fit together."""

from itertools import pairwise

import numpy as np
import pytest

from lwqc.quant.formats import WeightFormat
from lwqc.quant.grid import Encoded
from lwqc.quant.methods import METHODS
from lwqc.quant.side import encode_with_side, side_bytes
from tests.build import normal
from tests.quant.correlated import energy, layer

FMT = WeightFormat(3, 32)


def outliers(n, k):
    """A layer of which three input channels are ten times as large as the others."""
    weight, gram = layer(n, k)
    size = np.ones(k)
    size[[5, 40, 41]] = 10
    return weight, gram * np.outer(size, size)


def loss(weight, gram, encoded, side):
    return energy(weight - encoded.decode() - side.matrix(), gram)


def steps(weight, gram, method, name, values):
    given = dict.fromkeys(("rank", "columns"), 0)
    return [
        loss(weight, gram, *encode_with_side(method, weight, FMT, gram, **given | {name: v}))
        for v in values
    ]


@pytest.mark.parametrize("method", ["rtn", "gptq", "gptq-order", "gpfq"])
@pytest.mark.parametrize("name", ["rank", "columns"])
def test_the_error_falls_with_rank_and_with_columns(method, name):
    """Of a method that does not look at the Gram matrix, the plain error."""
    weight, gram = outliers(48, 96)
    seen = np.eye(96) if method == "rtn" else gram
    found = steps(weight, seen, method, name, [0, 1, 2, 4, 8, 16])
    assert all(after < before for before, after in pairwise(found))


def test_both_are_better_than_either():
    weight, gram = outliers(48, 96)
    both = loss(weight, gram, *encode_with_side("gptq", weight, FMT, gram, rank=8, columns=3))
    for rank, columns in ((8, 0), (0, 3)):
        done = encode_with_side("gptq", weight, FMT, gram, rank=rank, columns=columns)
        assert both < loss(weight, gram, *done)


def test_columns_take_up_the_errors_of_the_others():
    weight, gram = outliers(48, 96)
    encoded, side = encode_with_side("gptq", weight, FMT, gram, columns=3)
    copied = side.up.copy()
    copied[:3] = weight.T[side.columns]
    plain = type(side)(side.columns, side.down, copied)
    assert loss(weight, gram, encoded, side) < 0.9 * loss(weight, gram, encoded, plain)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("fmt", ["w4b32", "w2b16a", "w8c", "fp4b32"])
def test_codes_of_float_columns_mean_zero(method, fmt):
    weight, gram = outliers(32, 64)
    weight[:, :32] += 1  # all of a block on one side of 0
    encoded, side = encode_with_side(
        method, weight, WeightFormat.parse(fmt), gram, rank=2, columns=3
    )
    assert isinstance(encoded, Encoded)
    assert not encoded.decode()[:, side.columns].any()
    assert np.isfinite(side.up).all()


def test_without_a_gram_matrix_columns_are_copies_and_the_rank_is_that_of_the_error():
    weight, _ = layer(48, 96)
    encoded, side = encode_with_side("rtn", weight, FMT, None, rank=2, columns=2)
    assert np.array_equal(side.up[:2], weight.T[side.columns])
    rest = weight.copy()
    rest[:, side.columns] = 0
    u, s, v = np.linalg.svd((rest - encoded.decode()).astype(np.float64))
    expected = (u[:, :2] * s[:2]) @ v[:2]
    np.testing.assert_allclose((side.down @ side.up[2:]).T, expected, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_factors_survive_float16(scale):
    weight, gram = layer(48, 96)
    weight *= np.float32(scale)
    encoded, side = encode_with_side("gptq", weight, FMT, gram, rank=8)
    half = type(side)(
        side.columns,
        side.down.astype(np.float16).astype(np.float32),
        side.up.astype(np.float16).astype(np.float32),
    )
    exact, rounded = loss(weight, gram, encoded, side), loss(weight, gram, encoded, half)
    assert rounded < 1.001 * exact


def test_a_weight_without_error_gets_a_branch_of_zero():
    encoded, side = encode_with_side(
        "rtn", np.zeros((8, 32), np.float32), WeightFormat(4, 32), None, rank=2, columns=1
    )
    assert not side.matrix().any()
    assert not encoded.decode().any()


def test_bytes():
    _, side = encode_with_side("rtn", normal(8, 32), WeightFormat(4, 32), None, rank=3)
    assert side_bytes(8, 32, 3, 0) == 2 * (side.up.size + side.down.size) == 240
    assert side_bytes(8, 32, 0, 2) == 2 * (2 * 8) + 2 * 4
    assert side_bytes(8, 32, 0, 0) == 0
