"""Bases of residual streams: principal components, and what applying one means."""

import numpy as np
import pytest

from lwqc.quant.basis import Orthogonal, Unchanged, principal

RNG = np.random.default_rng(0)
ROWS = RNG.standard_normal((200, 12)) * np.geomspace(1, 1e-3, 12) @ RNG.standard_normal((12, 12))


def test_principal_components_are_orthogonal_and_in_order() -> None:
    columns = principal(ROWS.T @ ROWS)
    np.testing.assert_allclose(columns.T @ columns, np.eye(12), atol=1e-12)
    energy = ((ROWS @ columns) ** 2).sum(axis=0)
    assert (np.diff(energy) <= 1e-9 * energy[0]).all()
    assert energy[0] == pytest.approx(np.linalg.svd(ROWS, compute_uv=False)[0] ** 2)


def test_the_first_ones_keep_the_most_of_any_basis_of_that_width() -> None:
    kept = ROWS @ principal(ROWS.T @ ROWS)[:, :4]
    for _ in range(5):
        other = np.linalg.qr(RNG.standard_normal((12, 12)))[0][:, :4]
        assert (kept**2).sum() > ((ROWS @ other) ** 2).sum()


def test_signs_do_not_depend_on_the_solver() -> None:
    gram = ROWS.T @ ROWS
    columns = principal(gram)
    largest = columns[np.abs(columns).argmax(axis=0), np.arange(12)]
    assert (largest > 0).all()
    np.testing.assert_allclose(gram @ columns, columns * np.linalg.eigvalsh(gram)[::-1], atol=1e-8)
    assert np.isfinite(principal(np.zeros((3, 3)))).all()


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_a_basis_turns_one_axis(axis) -> None:
    matrix = np.linalg.qr(RNG.standard_normal((3, 3)))[0]
    values = RNG.standard_normal((3, 3, 3))
    found = Orthogonal(matrix, 0.5).apply(values, axis)
    expected = np.moveaxis(np.moveaxis(values, axis, -1) @ matrix, -1, axis)
    np.testing.assert_allclose(found, expected)
    np.testing.assert_array_equal(Unchanged().apply(values, axis), values)
