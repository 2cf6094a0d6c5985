"""Allocation of channels to a budget."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lwqc.decide.allocators.channel_budget import (
    Candidate,
    global_budget,
    local_budget,
    local_ratio,
)

SIZES = {"a": 10, "b": 20}


def cost(keep):
    kept = {n: int(keep[n].sum()) if n in keep else s for n, s in SIZES.items()}
    return kept["a"] * kept["b"]


def candidates(**options):
    return [
        Candidate("a", np.arange(10), np.arange(1.0, 11), **options),
        Candidate("b", np.arange(20)[::-1].copy(), np.arange(1.0, 21) / 10, **options),
    ]


def test_global_takes_the_cheapest_of_all_groups():
    keep = global_budget(candidates(), cost, 150, {})
    assert list(keep) == ["b"]
    assert cost(keep) <= 150
    assert keep["b"].tolist() == [True] * 15 + [False] * 5


def test_local_takes_equal_shares():
    keep = local_budget(candidates(), cost, 100, {})
    assert cost(keep) <= 100
    assert keep["a"].sum() / 10 == pytest.approx(keep["b"].sum() / 20, abs=0.1)


def test_overrides_come_first():
    keep = global_budget(candidates(), cost, 150, {"a": 3})
    assert keep["a"].tolist() == [False] * 3 + [True] * 7
    assert local_ratio(candidates(), 0.5, {"a": 0}).keys() == {"b"}


def test_an_unreachable_limit_gives_the_closest():
    keep = global_budget(candidates(least=4), cost, 1, {})
    assert {n: m.sum() for n, m in keep.items()} == {"a": 4, "b": 4}


@given(st.integers(1, 60), st.integers(0, 60), st.integers(1, 9), st.integers(1, 9))
def test_kept_widths_are_whole_steps(size, removed, step, least):
    mask = Candidate("g", np.arange(size), np.ones(size), step, least).keep(min(removed, size))
    kept = int(mask.sum())
    assert 1 <= kept <= size
    assert kept == size or (kept % step == 0 and kept >= min(least, size))


def test_no_candidates():
    assert global_budget([], lambda keep: 5, 1, {}) == {}
