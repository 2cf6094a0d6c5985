import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lwqc.quant.formats import packed_bytes
from lwqc.quant.planes import byte_table, plane, plane_shape, planes_of


@given(st.integers(1, 7), st.integers(1, 40), st.integers(0, 9))
def test_planes_take_the_bits_of_the_codes_and_tables_read_them(bits, count, seed):
    codes = np.random.default_rng(seed).integers(0, 2**bits, count).astype(np.uint8)
    planes = {(w, o): plane(codes, w, o) for w, o in planes_of(bits)}
    assert sum(p.size for p in planes.values()) == packed_bytes(count, bits)
    assert all(p.shape == plane_shape(count, w) for (w, _), p in planes.items())
    read = sum(byte_table(*which)[packed] for which, packed in planes.items())
    assert np.array_equal(np.asarray(read).ravel()[:count], codes)
