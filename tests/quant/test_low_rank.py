"""Low-rank corrections and outlier columns."""

import numpy as np
import pytest

from lwqc.errors import InputError
from lwqc.quant.formats import WeightFormat
from lwqc.quant.gptq import gptq
from lwqc.quant.low_rank import low_rank, low_rank_rows
from lwqc.quant.outlier_columns import outlier_columns
from lwqc.quant.output_error import output_error
from lwqc.quant.range_search import encode
from tests.build import normal
from tests.quant.correlated import energy, layer


def rounding_error(n, k):
    weight, gram = layer(n, k)
    return weight - encode(weight, WeightFormat(2, 32)).decode(), gram


@pytest.mark.parametrize(("n", "k"), [(30, 50), (50, 30), (40, 40)])
@pytest.mark.parametrize("rank", [1, 7, 30])
def test_factors_are_the_best_of_their_rank(n, k, rank):
    error, gram = rounding_error(n, k)
    root = np.linalg.cholesky(gram)
    for weighing, matrix in ((None, error), (gram, error @ root)):
        left, right = low_rank(error, rank, weighing)
        assert left.shape == (n, rank)
        assert right.shape == (rank, k)
        np.testing.assert_allclose(left.T @ left, np.eye(rank), atol=1e-9)
        rest = np.square(np.linalg.svd(matrix, compute_uv=False)[rank:]).sum()
        used = np.eye(k) if weighing is None else weighing
        assert energy(error - left @ right, used) == pytest.approx(rest, rel=1e-5, abs=1e-9)


def test_inputs_that_never_fire_need_no_correction():
    error, gram = rounding_error(20, 30)
    gram[3:] = gram[:, 3:] = 0
    left, right = low_rank(error, 3, gram)
    assert energy(error - left @ right, gram) <= 1e-12 * energy(error, gram)


def test_columns_come_by_importance():
    error, gram = rounding_error(40, 60)
    first, later = low_rank(error, 2, gram), low_rank(error, 6, gram)
    np.testing.assert_allclose(first[0] @ first[1], later[0][:, :2] @ later[1][:2], atol=1e-9)


@pytest.mark.parametrize("rank", [0, 31])
def test_ranks_out_of_range_are_refused(rank):
    with pytest.raises(InputError, match=r"rank in 1\.\.30"):
        low_rank(np.ones((40, 30)), rank)


def test_columns_of_large_inputs_are_taken_out():
    weight, gram = layer(40, 100)
    size = np.ones(100)
    size[[8, 31, 77]] = 50
    gram *= np.outer(size, size)
    fmt = WeightFormat(4, 32)
    columns, rest = outlier_columns(weight, encode(weight, fmt).decode(), gram, 3)
    assert columns.tolist() == [8, 31, 77]
    assert not rest[:, columns].any()
    kept = np.setdiff1d(np.arange(100), columns)
    assert np.array_equal(rest[:, kept], weight[:, kept])
    for method in (lambda w: encode(w, fmt), lambda w: gptq(w, fmt, gram)):
        before = output_error(weight, method(weight).decode(), gram)
        after = output_error(rest, method(rest).decode(), gram)
        whole = after * energy(rest, gram) / energy(weight, gram)
        assert whole < 0.5 * before


def test_no_columns_and_all_columns():
    weight, gram = layer(10, 20)
    none, rest = outlier_columns(weight, 0 * weight, gram, 0)
    assert len(none) == 0
    assert np.array_equal(rest, weight)
    every, rest = outlier_columns(weight, 0 * weight, gram, 20)
    assert every.tolist() == list(range(20))
    assert not rest.any()


def test_counts_out_of_range_are_refused():
    with pytest.raises(InputError, match=r"count in 0\.\.16"):
        outlier_columns(normal(4, 16), normal(4, 16), np.eye(16), 17)


def test_rows_of_a_table_lose_the_least_by_their_weights():
    rng = np.random.default_rng(0)
    table, weights = rng.standard_normal((60, 20)), rng.uniform(0.1, 3, 60)
    rows, directions = low_rank_rows(table, 8, weights)
    assert (rows.shape, directions.shape) == ((60, 8), (8, 20))
    lost = (weights[:, None] * np.square(table - rows @ directions)).sum()
    values = np.linalg.svd(np.sqrt(weights)[:, None] * table, compute_uv=False)
    assert lost == pytest.approx(np.square(values[8:]).sum())
    sizes = np.linalg.norm(rows, axis=0)
    assert sizes.max() < 1.5 * sizes.min()
    with pytest.raises(InputError, match=r"expected a rank in 1\.\.20, found 21"):
        low_rank_rows(table, 21, weights)
