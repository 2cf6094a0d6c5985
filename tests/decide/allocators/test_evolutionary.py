from itertools import product

import numpy as np
import pytest

from lwqc.decide.allocators.evolutionary import Settings, evolve, filled, mutated

SIZES = (4, 4, 4, 3, 2)
PRICES = np.array([3.0, 5.0, 2.0, 7.0, 11.0])
LIMIT = 22.0


def fits(candidate):
    return float(PRICES @ candidate) <= LIMIT


def loss(candidate):
    """Raising any item helps, but what it helps depends on the others."""
    left = np.asarray(SIZES, float) - 1 - candidate
    return float((left**2 * [1.0, 2.0, 0.7, 3.0, 4.0]).sum() + 3 * left[0] * left[3] * left[2])


def score(candidates, stage):
    noise = 0.3 / (1 + stage) ** 3 if stage < 2 else 0.0
    return [
        loss(c) + noise * np.random.default_rng(hash((c, stage)) % 2**32).standard_normal()
        for c in candidates
    ]


def best_by_brute_force():
    return min((c for c in product(*map(range, SIZES)) if fits(c)), key=loss)


@pytest.mark.parametrize("seed", range(3))
def test_finds_the_optimum_of_a_small_problem(seed):
    found = evolve(SIZES, fits, (0,) * 5, score, Settings(generations=40, seed=seed))
    assert loss(found.best) == pytest.approx(loss(best_by_brute_force()))
    assert found.score == pytest.approx(loss(found.best))


def test_same_seed_same_result_and_another_seed_another_path():
    paths = []
    for seed in (1, 1, 2):
        path = []
        evolve(SIZES, fits, (0,) * 5, score, Settings(8, 4, (2, 1), seed=seed), seen=path.append)
        paths.append(path)
    assert paths[0] == paths[1]
    assert paths[0] != paths[2]


def test_is_elitist_and_starts_from_the_start():
    path = []
    evolve(SIZES, fits, (1, 1, 1, 1, 0), score, Settings(20, 4, (2,)), seen=path.append)
    assert path[0].best == (1, 1, 1, 1, 0)
    scores = [g.score for g in path]
    assert scores == sorted(scores, reverse=True)


def test_stages_see_fewer_and_fewer_candidates():
    counts = {}

    def counted(candidates, stage):
        counts.setdefault(stage, []).append(len(candidates))
        return score(candidates, stage)

    evolve(SIZES, fits, (0,) * 5, counted, Settings(2, 12, (5, 2)))
    assert counts == {0: [12, 12], 1: [5, 5], 2: [1, 2, 2]}


def test_stops_when_told_and_refuses_a_start_over_budget():
    assert evolve(SIZES, fits, (0,) * 5, score, Settings(9), stop=lambda: True).number == 0
    with pytest.raises(ValueError, match="exceeds"):
        evolve(SIZES, fits, (3, 3, 3, 2, 1), score, Settings(1))


def test_pairs_of_equal_price_keep_an_exact_budget():
    rng = np.random.default_rng(0)
    parent = (1, 2, 0, 3, 1, 2)

    def exact(candidate):
        return sum(candidate) <= sum(parent)

    children = [mutated(rng, parent, (4,) * 6, exact) for _ in range(200)]
    assert {sum(c) for c in children if c} == {sum(parent)}
    assert len(set(children)) > 20


def test_nothing_more_fits_after_filling():
    rng = np.random.default_rng(0)
    full = filled(rng, (0,) * 5, SIZES, fits)
    assert fits(full)
    for i in range(5):
        raised = tuple(level + (i == j) for j, level in enumerate(full))
        assert full[i] + 1 == SIZES[i] or not fits(raised)
