from itertools import product

import numpy as np
import pytest

from lwqc.decide.allocators.knapsack import Option, choose
from lwqc.decide.allocators.pairwise import choose_pairwise
from lwqc.decide.allocators.prefix import at_budget, prefix_order
from lwqc.decide.allocators.rate_distortion import allocate
from lwqc.decide.allocators.water_filling import sigmoid_shares, water_fill


def random_options(seed, items=5, levels=4):
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(items):
        costs = np.sort(rng.integers(1, 40, levels))
        errors = np.sort(rng.random(levels))[::-1]
        found.append([Option(float(c), float(e)) for c, e in zip(costs, errors, strict=True)])
    return found


def cost_of(options, chosen):
    return sum(item[c].cost for item, c in zip(options, chosen, strict=True))


def error_of(options, chosen):
    return sum(item[c].error for item, c in zip(options, chosen, strict=True))


def all_fitting(options, budget):
    every = product(*(range(len(item)) for item in options))
    return [c for c in every if cost_of(options, c) <= budget]


@pytest.mark.parametrize("seed", range(8))
def test_dynamic_programming_equals_the_exact_knapsack(seed):
    options, budget = random_options(seed), 90.0
    cheapest = sum(min(o.cost for o in item) for item in options)
    found = allocate(options, budget, buckets=int(budget - cheapest))  # of 1: nothing is rounded
    assert cost_of(options, found) <= budget
    best = min(error_of(options, c) for c in all_fitting(options, budget))
    assert error_of(options, found) == pytest.approx(best)
    assert error_of(options, choose(options, budget)) == pytest.approx(best)


def test_few_buckets_still_fit_and_no_room_is_told():
    options = random_options(0)
    coarse = allocate(options, 90.0, buckets=7)
    assert cost_of(options, coarse) <= 90
    assert allocate(options, 1.0) is None
    cheapest = sum(min(o.cost for o in item) for item in options)
    assert cost_of(options, allocate(options, cheapest)) == cheapest


@pytest.mark.parametrize("seed", range(8))
def test_pairwise_choice_against_brute_force(seed):
    rng = np.random.default_rng(100 + seed)
    options, budget = random_options(seed), 90.0
    probes = [item[0].error for item in options]
    pairs = {(i, i + 1): float(rng.normal(0, 0.4)) for i in range(4)}

    def total(chosen):
        strength = [
            np.sqrt(item[c].error / p) for item, c, p in zip(options, chosen, probes, strict=True)
        ]
        crossed = sum(v * strength[i] * strength[j] for (i, j), v in pairs.items())
        return error_of(options, chosen) + crossed

    found = choose_pairwise(options, pairs, probes, budget)
    assert cost_of(options, found) <= budget
    best = min(map(total, all_fitting(options, budget)))
    assert total(found) <= total(choose(options, budget)) + 1e-12
    assert total(found) == pytest.approx(best, abs=0.02)


def test_pairwise_without_interactions_is_the_knapsack():
    options = random_options(3)
    assert choose_pairwise(options, {}, [1.0] * 5, 90.0) == choose(options, 90.0)
    assert choose_pairwise(options, {}, [1.0] * 5, 1.0) is None


@pytest.mark.parametrize("seed", range(5))
def test_every_prefix_has_the_least_error_for_its_cost(seed):
    options = random_options(seed)
    steps = prefix_order(options)
    costs = [s.cost for s in steps]
    assert costs == sorted(costs)
    for step in steps:
        chosen = at_budget(options, steps, step.cost)
        assert cost_of(options, chosen) == pytest.approx(step.cost)
        assert error_of(options, chosen) == pytest.approx(step.error)
        best = min(error_of(options, c) for c in all_fitting(options, step.cost))
        assert step.error == pytest.approx(best)
    assert at_budget(options, steps, 0.0) is None
    assert error_of(options, at_budget(options, steps, 1e9)) == pytest.approx(
        sum(min(o.error for o in item) for item in options)
    )


def test_water_fills_in_proportion_up_to_the_caps():
    scores, weights = np.array([1.0, 2.0, 7.0]), np.array([10.0, 10.0, 10.0])
    low, high = np.zeros(3), np.full(3, 0.6)
    free = water_fill(scores, weights, 6.0, low, high)
    np.testing.assert_allclose(free, [0.06, 0.12, 0.42])
    capped = water_fill(scores, weights, 12.0, low, high)
    np.testing.assert_allclose(capped, [0.2, 0.4, 0.6])
    np.testing.assert_allclose(water_fill(scores, weights, 99, low, high), high)
    np.testing.assert_allclose(water_fill(scores, weights, -1, low, high), low)


def test_water_with_unequal_weights_floors_and_items_without_score():
    scores, weights = np.array([0.0, 1.0, 1.0]), np.array([4.0, 1.0, 3.0])
    low, high = np.array([0.25, 0.0, 0.0]), np.ones(3)
    shares = water_fill(scores, weights, 3.0, low, high)
    assert weights @ shares == pytest.approx(3.0)
    np.testing.assert_allclose(shares, [0.25, 0.5, 0.5])
    beyond = water_fill(scores, weights, 6.5, low, high)
    assert weights @ beyond == pytest.approx(6.5)
    np.testing.assert_allclose(beyond[1:], [1, 1])


def test_blocks_that_change_more_keep_more():
    shares = sigmoid_shares(np.array([0.1, 0.2, 0.6]), 0.5)
    assert shares.mean() == pytest.approx(0.5)
    assert list(np.argsort(shares)) == [0, 1, 2]
    np.testing.assert_allclose(sigmoid_shares(np.full(3, 0.2), 0.5), 0.5)
