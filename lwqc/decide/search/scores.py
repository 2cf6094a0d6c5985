"""What items are scored by, beside the errors that statistics predict."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence
from functools import partial
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from lwqc.decide.allocators.evolutionary import Candidate, Fits
from lwqc.decide.allocators.knapsack import Option
from lwqc.decide.allocators.pairwise import choose_pairwise
from lwqc.decide.allocators.water_filling import sigmoid_shares, water_fill
from lwqc.decide.scores.branches.similarity import branch_effects
from lwqc.decide.search.log import SearchLog
from lwqc.decide.search.search_model import SearchModel
from lwqc.decide.search.space import SearchSpace
from lwqc.decide.search.start import Allocate
from lwqc.decide.search.trial_model import ALL, PART, TrialModel
from lwqc.decide.search.workers import Evaluate, remembering
from lwqc.graph.branch_kinds import branch_tree
from lwqc.runtime.session import statistics_session

_EPSILON = 1e-3
_BISECTIONS = 30
_TIE = 1e-6  # of a divergence, beside drops of a metric
_MOST_PAIRS = 2000  # of items whose interaction is measured


def measured_errors(
    space: SearchSpace, errors_of: Callable[[Sequence[Candidate]], Sequence[float]]
) -> None:
    """Replace predicted errors by those that each level makes alone (RD, OPTIN).

    errors_of: candidates, such as their divergence. A stronger level never errs less than a weaker
    one: noise is smoothed out.
    """
    top = space.top
    trials: list[Candidate] = []
    for i, item in enumerate(space.items):
        trials += [(*top[:i], level, *top[i + 1 :]) for level in range(item.top)]
    values = iter(errors_of(trials))
    items = []
    for item in space.items:
        errors = np.array([*(next(values) for _ in range(item.top)), 0.0])
        rising = np.maximum.accumulate(errors[::-1])[::-1]
        items.append(dataclasses.replace(item, errors=tuple(float(e) for e in rising)))
    space.items = tuple(items)


def pairwise_allocator(space: SearchSpace, score: Evaluate) -> Allocate:
    """An allocator for formats (all items where there are none) by what pairs of them make (CLADO).

    Errors of the space are those that levels make alone. Each pair is measured at the middle
    levels; of very many, those that are closest to each other in the graph.
    """
    items = space.of_kind("format") or list(range(len(space.items)))
    middle = {i: space.items[i].top // 2 for i in items}
    near = sorted(combinations(range(len(items)), 2), key=lambda p: (p[1] - p[0], p))[:_MOST_PAIRS]

    def at_middle(chosen: Collection[int]) -> Candidate:
        return tuple(middle[i] if i in chosen else top for i, top in enumerate(space.top))

    alone = score([at_middle({i}) for i in items], PART)
    both = score([at_middle({items[a], items[b]}) for a, b in near], PART)
    pairs = {(a, b): v - alone[a] - alone[b] for (a, b), v in zip(near, both, strict=True)}

    def allocate(options: Sequence[Sequence[Option]], budget: float) -> list[int] | None:
        return choose_pairwise(options, pairs, alone, budget)

    return allocate


def by_metric(found: SearchModel, score: Evaluate, log: SearchLog) -> Evaluate:
    """Candidates on all data by the drop of the user's metric, equal ones by their divergence.

    Smaller stages go by divergence alone. The work must have a metric.
    """
    work, trial = found.work, TrialModel(found.spec)
    metric = work.job.metric
    assert metric is not None

    def dropped(candidates: Sequence[Candidate], stage: int) -> list[float]:
        found = (metric(partial(trial.outputs, candidate)) for candidate in candidates)
        return [metric.drop(work.original.metric, value) for value in found]

    drops = remembering(dropped, log, "metric")

    def judged(candidates: Sequence[Candidate], stage: int) -> list[float]:
        distances = score(candidates, stage)
        if stage != ALL:
            return distances
        pairs = zip(drops(candidates, ALL), distances, strict=True)
        return [drop + _TIE * distance for drop, distance in pairs]

    return judged


def zeroth_order(found: SearchModel, seed: int) -> NDArray[np.float64]:
    """Sensitivity of each width by two runs with noise on its weights (ECoFLaP, 2310.02998).

    The divergence from the original at W + εz and W - εz over ε²: its first derivative is 0 where
    it is compared with itself, so this is the curvature along z, summed over the group's tensors.
    """
    space, trial = found.space, TrialModel(found.spec)
    rng = np.random.default_rng(seed)
    scores = []
    for item in space.of_kind("width"):
        total = 0.0
        for tensor in found.spec.tensors:
            if not any(cut.item == item for cut in tensor.cuts) or tensor.values.ndim < 2:
                continue
            noise = rng.standard_normal(tensor.values.shape)
            step = _EPSILON * noise * np.abs(tensor.values).mean()
            for sign in (1, -1):
                moved = (tensor.values + sign * step).astype(tensor.values.dtype)
                total += trial.perturbed({tensor.name: moved})
        scores.append(total / _EPSILON**2)
    return np.asarray(scores)


def block_angles(found: SearchModel) -> NDArray[np.float64]:
    """Scores of widths by how far the block around them turns the stream (CFSP, 2409.13199).

    The mean angle of a token; a sigmoid of how it stands among all blocks. Groups outside any block
    get the mean.
    """
    model, space = found.prunable.model, found.space
    units = {u[0].name: [b.branch for b in u] for u in branch_tree(model.graph).blocks}
    if not units:
        return np.ones(len(space.of_kind("width")))
    effects = branch_effects(model, units, found.work.job.data.judge, statistics_session)
    reads = {
        name: {v for b in unit for node in b.nodes for v in node.inputs}
        for name, unit in units.items()
    }
    mean = float(np.mean([effects[name].angular for name in units]))
    distances = []
    for item in space.of_kind("width"):
        weights = {o.value for o in found.groups[item].weights}
        inside = [effects[name].angular for name in units if reads[name] & weights]
        distances.append(float(np.mean(inside)) if inside else mean)
    return sigmoid_shares(np.asarray(distances), 1.0)


def filled_widths(
    space: SearchSpace, scores: NDArray[np.float64], cost: Callable[[Candidate], float], fits: Fits
) -> Candidate:
    """Shares of channels in proportion to scores, as large as fits; by bisection."""
    items = space.of_kind("width")
    shares = [[float(m.mean()) for m in space.keeps[i]] for i in items]
    low = np.array([s[0] for s in shares])
    weights = np.array([_saved(space, i, cost) for i in items])

    def at(share: float) -> Candidate:
        total = float(weights @ low) + share * float(weights @ (1 - low))
        wanted = water_fill(scores, weights, total, low, np.ones(len(items)))
        candidate = list(space.top)
        for i, own, want in zip(items, shares, wanted, strict=True):
            candidate[i] = max(k for k, s in enumerate(own) if k == 0 or s <= want + 1e-9)
        return tuple(candidate)

    smallest, largest = 0.0, 1.0
    for _ in range(_BISECTIONS):
        middle = (smallest + largest) / 2
        if fits(at(middle)):
            smallest = middle
        else:
            largest = middle
    return at(smallest)


def _saved(space: SearchSpace, item: int, cost: Callable[[Candidate], float]) -> float:
    """What a group's channels cost together."""
    top = space.top
    share = float(space.keeps[item][0].mean())
    narrow = (*top[:item], 0, *top[item + 1 :])
    return max((cost(top) - cost(narrow)) / max(1 - share, 1e-9), 1e-9)
