import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lwqc.errors import InputError
from lwqc.quant.activation import activation_grid
from lwqc.quant.block_scale import full_range
from lwqc.quant.formats import WeightFormat
from lwqc.quant.grid import pack, unpack
from lwqc.quant.range_search import encode
from lwqc.quant.tiles import tile
from lwqc.quant.unit_grid import round_to_grid
from tests.build import normal
from tests.quant.test_formats import formats, integer_formats


def error(weight, fmt, **options):
    return float(((encode(weight, fmt, **options).decode() - weight) ** 2).sum())


@given(st.sampled_from([2, 4, 8]), st.integers(1, 33), st.integers(0, 2**32 - 1))
def test_packing_reads_back(bits, n, seed):
    codes = np.random.default_rng(seed).integers(0, 2**bits, (3, n)).astype(np.uint8)
    packed = pack(codes, bits)
    assert packed.shape == (3, -(-n * bits // 8))
    assert np.array_equal(unpack(packed, bits, n), codes)


def test_packing_puts_the_first_code_in_the_lowest_bits():
    assert pack(np.array([[1, 2, 3]], np.uint8), 4).tolist() == [[0x21, 0x03]]


@settings(max_examples=80, deadline=None)
@given(formats, st.integers(1, 20), st.integers(1, 70), st.integers(0, 99))
def test_search_is_never_worse_than_the_plain_range(fmt, n, k, seed):
    weight = normal(n, k, seed=seed) * np.exp(normal(n, 1, seed=seed + 1))
    columns = tile(weight, fmt.blocks(k), fmt.block or k)
    scale, zero = full_range(columns, fmt)
    plain = float(((round_to_grid(columns, scale, zero, fmt) * scale - columns) ** 2).sum())
    # float16 scales are wrong by 2^-11 at most.
    rounding = float((weight**2).sum()) * 2.0**-22 if fmt.scale == "float16" else 0
    for search in (False, True):
        assert error(weight, fmt, search=search) <= 1.0001 * plain + rounding + 1e-12


@settings(max_examples=80, deadline=None)
@given(integer_formats, st.integers(1, 20), st.integers(1, 70), st.integers(0, 99))
def test_error_is_below_half_a_step_of_the_range(fmt, n, k, seed):
    weight = normal(n, k, seed=seed)
    encoded = encode(weight, fmt, search=False)
    block = fmt.block or k
    padded = np.pad(weight, ((0, 0), (0, -k % block))).reshape(n, -1, block)
    high, low = np.maximum(padded.max(-1), 0), np.minimum(padded.min(-1), 0)
    steps = 2 ** (fmt.bits - 1) - 0.5 if fmt.symmetric else 2**fmt.bits - 1
    span = np.maximum(high, -low) if fmt.symmetric else high - low
    step = np.repeat(span / steps, block, axis=1).reshape(n, -1)[:, :k]
    # A symmetric code range has one code less on one side: up to a whole step is clipped there.
    assert (np.abs(encoded.decode() - weight) <= step * 1.3 + 1e-6).all()


def test_both_storage_orders_give_the_same_codes():
    weight = normal(70, 100)
    for text in ("w4b32h", "w4b16a", "w8c", "w2b64"):
        fmt = WeightFormat.parse(text)
        rows, columns = encode(weight, fmt), encode(np.asfortranarray(weight), fmt)
        assert np.array_equal(rows.codes, columns.codes)
        assert np.array_equal(rows.scale, columns.scale)


def test_large_weights_are_encoded_the_same_in_pieces(monkeypatch):
    weight, fmt = normal(300, 96), WeightFormat(4, 32)
    whole = encode(weight, fmt)
    monkeypatch.setattr("lwqc.quant.tiles._TILE", 1000)
    assert np.array_equal(whole.codes, encode(weight, fmt).codes)


@pytest.mark.parametrize(
    "text", ["w2b16", "w3b32", "w3ca", "w4b32h", "w4b32ah", "w8c", "w8b128a", "nf4b64", "fp4b16h"]
)
def test_zeros_stay_zero(text):
    weight = normal(8, 64)
    weight[:, ::3] = 0
    assert (encode(weight, WeightFormat.parse(text)).decode()[:, ::3] == 0).all()


@pytest.mark.parametrize("text", ["w4b32h", "w4b32ah", "w8c"])
@pytest.mark.parametrize("value", [0.0, 1e-42, 0.5, -3.0])
def test_constant_weights_come_back(text, value):
    weight = np.full((3, 40), value, np.float32)
    decoded = encode(weight, WeightFormat.parse(text)).decode()
    assert np.abs(decoded - weight).max() <= max(abs(value) * 1e-2, 1e-37)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite_weights_are_refused(bad):
    weight = normal(4, 32)
    weight[2, 5] = bad
    with pytest.raises(InputError, match="NaN or infinity"):
        encode(weight, WeightFormat(4, 32))


def test_float16_scales_that_overflow_are_refused():
    with pytest.raises(InputError, match="too large for float16"):
        encode(normal(4, 32, scale=1e9), WeightFormat(4, 32, True, "float16"))


def test_symmetric_8_bit_codes_avoid_minus_128():
    codes = encode(normal(64, 256), WeightFormat(8)).codes
    assert codes.min() >= 1


@pytest.mark.parametrize(
    ("low", "high", "zero"), [(0.0, 5.0, 0), (-5.0, 5.0, 127), (2.0, 3.0, 0), (-1.0, 0.0, 255)]
)
def test_activation_grid_holds_zero(low, high, zero):
    grid = activation_grid(low, high)
    assert grid.zero == zero
    assert (0 - grid.zero) * grid.scale <= min(low, 0) + grid.scale
    assert (255 - grid.zero) * grid.scale >= high - grid.scale


def test_activation_grid_of_nothing_is_usable():
    assert activation_grid(0.0, 0.0).scale == 1.0
