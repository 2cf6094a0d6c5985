"""Tests of the pass."""

from lwqc.testing import assert_rewrites, assert_survives, assert_untouched
from square import PowToMul

BEFORE = """g (float[n,4] x) => (float[n,4] y) {
    two = Constant<value = float {2.0}>()
    y = Pow(x, two)
}"""
AFTER = """g (float[n,4] x) => (float[n,4] y) {
    y = Mul(x, x)
}"""


def test_a_square_becomes_a_product():
    assert_rewrites(PowToMul(), BEFORE, AFTER)


def test_other_powers_stay():
    assert_untouched(PowToMul(), BEFORE.replace("2.0", "3.0"), "its exponent is not a stored 2")


def test_no_harm_is_done(trap, tmp_path):
    assert_survives(PowToMul(), trap, tmp_path)
