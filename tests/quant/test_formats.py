import pytest
from hypothesis import given
from hypothesis import strategies as st

from lwqc.errors import InputError
from lwqc.quant.formats import BITS, BLOCKS, DIMS, WeightFormat
from lwqc.quant.unit_grid import code_range

scales = st.sampled_from(["float32", "float16"])
integer_formats = st.builds(
    WeightFormat,
    st.sampled_from([bits for bits in BITS if bits != 7]),
    st.sampled_from([None, *BLOCKS]),
    st.booleans(),
    scales,
)
float_formats = st.builds(
    WeightFormat,
    st.just(4),
    st.sampled_from(BLOCKS),
    st.just(True),
    scales,
    st.sampled_from(["nf4", "fp4"]),
)
reduced = st.builds(WeightFormat, st.just(7), st.none(), st.just(True), scales)
dense = st.builds(
    WeightFormat, st.just(3), st.sampled_from(BLOCKS), st.booleans(), scales, dense=st.just(True)
)
codebooks = st.builds(
    WeightFormat,
    st.integers(1, 8),
    scale=st.just("float16"),
    kind=st.just("vq"),
    dim=st.sampled_from(DIMS),
)
grained = st.builds(
    WeightFormat,
    st.just(4),
    st.sampled_from(BLOCKS),
    kind=st.sampled_from(["dg", "e2m1"]),
    product=st.sampled_from([7, 8]),
)
formats = integer_formats | float_formats | reduced | dense


@given(formats | codebooks | grained)
def test_short_name_reads_back(fmt):
    assert WeightFormat.parse(str(fmt)) == fmt


@pytest.mark.parametrize("text", ["", "w4", "4b32", "w4b32x", "w4b32 ", "nf4", "nf3b32", "wnf4b32"])
def test_other_names_are_refused(text):
    with pytest.raises(InputError, match="not of the form"):
        WeightFormat.parse(text)


@pytest.mark.parametrize(("bits", "block"), [(5, 32), (4, 24), (16, None)])
def test_formats_that_no_kernel_has_are_refused(bits, block):
    with pytest.raises(InputError, match="must be one of"):
        WeightFormat(bits, block)


@pytest.mark.parametrize("text", ["nf4c", "nf4b64a", "fp4b32ah"])
def test_float_formats_have_blocks_and_no_zero_point(text):
    with pytest.raises(InputError, match="4 bits, a block and no zero point"):
        WeightFormat.parse(text)


def test_three_bits_are_stored_in_four():
    fmt = WeightFormat(3, 32)
    assert (fmt.storage_bits, fmt.implicit_zero) == (4, 8)
    assert code_range(fmt) == (4, 11)
    assert code_range(WeightFormat(3, 32, False)) == (0, 7)
    assert fmt.size_bytes(7, 100) == WeightFormat(4, 32).size_bytes(7, 100)


@pytest.mark.parametrize(
    ("text", "n", "k", "expected"),
    [
        ("w8c", 10, 33, 10 * 33 + 10 * 4),
        ("w4b32h", 10, 64, 10 * 32 + 10 * 2 * 2),
        ("w4b32", 10, 33, 10 * 32 + 10 * 2 * 4),  # padded to two blocks
        ("w4b32a", 10, 96, 10 * 48 + 10 * 3 * 4 + 10 * 2),  # three 4-bit zero points: two bytes
        ("w3b32a", 10, 96, 10 * 48 + 10 * 3 * 4 + 10 * 2),
        ("nf4b64h", 10, 64, 10 * 32 + 10 * 2),
        ("w2b16h", 4, 16, 4 * 4 + 4 * 2),
    ],
)
def test_size_counts_codes_scales_and_zero_points(text, n, k, expected):
    assert WeightFormat.parse(text).size_bytes(n, k) == expected


def test_dense_codes_of_three_bits_take_three():
    fmt = WeightFormat.parse("w3b32hd")
    assert (fmt.storage_bits, fmt.implicit_zero) == (3, 4)
    assert fmt.size_bytes(8, 64) == 8 * 64 * 3 // 8 + 8 * 2 * 2
    assert fmt.only_stored


@pytest.mark.parametrize("text", ["w4b32d", "nf4b32d", "vq9x2", "vq0x2", "vq4x3", "vq4"])
def test_what_cannot_be_dense_and_odd_codebooks_are_refused(text):
    with pytest.raises(InputError, match="format: "):
        WeightFormat.parse(text)


def test_codebooks_are_counted():
    assert WeightFormat.parse("vq5x2").size_bytes(8, 64) == 4 * 64 * 5 // 8 + 32 * 2 * 2
    assert WeightFormat.parse("vq8x4").size_bytes(7, 64) == 2 * 64 + 256 * 4 * 2
