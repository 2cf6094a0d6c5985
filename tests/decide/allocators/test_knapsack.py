"""The knapsack against brute force, and on sizes that real models have."""

from __future__ import annotations

import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lwqc.decide.allocators.knapsack import Option, cheapest, choose

BITS = (32, 16, 8.5, 8, 6, 5, 4.5, 4, 3, 2.25)


def totals(items, picked) -> tuple[float, float]:
    chosen = [item[i] for item, i in zip(items, picked, strict=True)]
    return math.fsum(o.cost for o in chosen), math.fsum(o.error for o in chosen)


def brute_force(items, budget: float) -> float | None:
    """Least total error within the budget."""
    every = (totals(items, p) for p in itertools.product(*(range(len(i)) for i in items)))
    return min((e for c, e in every if c <= budget and math.isfinite(e)), default=None)


def swapped(items):
    return [[Option(o.error, o.cost) for o in item] for item in items]


errors = st.one_of(
    st.just(math.inf),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.floats(-12, 3).map(lambda x: 10**x),
)
costs = st.one_of(st.integers(0, 6), st.integers(0, 10**10))
item = st.lists(st.builds(Option, costs, errors), min_size=1, max_size=4)
problem = st.lists(item, min_size=0, max_size=5)


@settings(max_examples=600, deadline=None)
@given(problem, st.floats(0, 1))
def test_choose_equals_brute_force(items, share: float) -> None:
    budget = int(share * sum(max(o.cost for o in options) for options in items))
    expected = brute_force(items, budget)
    picked = choose(items, budget)
    if expected is None:
        assert picked is None
        return
    cost, error = totals(items, picked)
    assert cost <= budget
    assert error == pytest.approx(expected, rel=1e-12, abs=0)


@settings(max_examples=600, deadline=None)
@given(problem, st.data())
def test_cheapest_equals_brute_force_at_a_bound_that_is_just_met(items, data) -> None:
    some = [data.draw(st.sampled_from(options)) for options in items]
    bound = math.fsum(o.error for o in some)
    picked = cheapest(items, bound)
    if not math.isfinite(bound):
        return
    cost, error = totals(items, picked)
    assert error <= bound
    assert cost == brute_force(swapped(items), bound)


def curves(count: int, kind: str) -> list[list[Option]]:
    """Error curves over number formats of `count` sites of a few sizes."""
    rng = random.Random(0)
    sizes = [a * b for a in (384, 768, 3072) for b in (384, 1000, 4096)]
    items = []
    for _ in range(count):
        size, scale = rng.choice(sizes), 10 ** rng.uniform(-9, 3)
        options = [Option(int(size * b / 8), scale * rng.uniform(0.5, 2) / 4**b) for b in BITS]
        if kind == "random":
            options = [Option(rng.randrange(10**10), rng.random()) for _ in BITS]
        elif kind == "proportional":
            options = [Option(o.cost, 1e9 - o.cost) for o in options]
        items.append(options)
    return items


@pytest.mark.parametrize("kind", ["formats", "random", "proportional"])
@pytest.mark.parametrize("share", [0.01, 0.1, 0.4])
def test_a_large_model_is_repeatable(kind: str, share: float) -> None:
    items = curves(200 if kind == "proportional" else 400, kind)
    low = sum(min(o.cost for o in options) for options in items)
    high = sum(max(o.cost for o in options) for options in items)
    budget = int(low + share * (high - low))
    # 0.05 s here, 0.4 s where errors are proportional to costs, four times that at 400 sites.
    picked = choose(items, budget)
    assert picked == choose(items, budget)
    cost, error = totals(items, picked)
    assert cost <= budget
    again = cheapest(items, error)
    assert totals(items, again)[0] <= cost


def test_identical_items_against_exact_dynamic_programming() -> None:
    items = [[Option(b * 10**6, e * (1 + i / 97)) for b, e in ((2, 1.0), (4, 0.1), (8, 0.003))]
             for i in range(60)]  # fmt: skip
    for budget in (150, 237, 300, 411):
        table = {0: 0.0}
        for options in items:
            sums: dict[int, float] = {}
            for (cost, error), o in itertools.product(table.items(), options):
                total = cost + int(o.cost) // 10**6
                sums[total] = min(sums.get(total, math.inf), error + o.error)
            table = {c: e for c, e in sums.items() if c <= budget}
        picked = choose(items, budget * 10**6)
        assert totals(items, picked)[1] == pytest.approx(min(table.values()), rel=1e-12)


def test_one_byte_decides() -> None:
    items = [[Option(10**10, 1e-12), Option(10**10 - 1, 1e3)], [Option(5, 0.0)]]
    assert choose(items, 10**10 + 5) == [0, 0]
    assert choose(items, 10**10 + 4) == [1, 0]
    assert choose(items, 10**10 + 3) is None


def test_small_errors_count_beside_large_ones() -> None:
    items = [[Option(1, 1000.0)], [Option(1, 3e-12), Option(2, 1e-12), Option(3, 2e-12)]]
    assert choose(items, 10) == [0, 1]


def test_nothing_allowed() -> None:
    assert choose([], 0) == []
    assert choose([[]], 1) is None
    assert choose([[Option(1, math.inf)]], 1) is None
    assert choose([[Option(1, 0.0)]], math.nan) is None
    assert cheapest([[Option(1, 1.0)]], 0.5) is None


def test_equal_errors_take_the_lower_cost() -> None:
    assert choose([[Option(3, 1.0), Option(2, 1.0), Option(2, 1.0)]], 9) == [1]
