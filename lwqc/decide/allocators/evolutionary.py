"""Evolutionary level switching under exact budgets, as in EvoPress (arXiv 2410.14649).

A candidate holds one level per item, 0 being the strongest. A mutation raises some items and
lowers others until the candidate fits its budgets again, then raises whatever still fits, so that
budgets stay used up. Each generation is compared on little data first and its survivors on more;
the parent stays unless a survivor beats it on all of the data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Candidate = tuple[int, ...]
Fits = Callable[[Candidate], bool]
Score = Callable[[Sequence[Candidate], int], Sequence[float]]
_TRIES = 20  # for an offspring that is new and fits


@dataclass(frozen=True)
class Settings:
    """How long and how wide to search.

    survivors: how many candidates leave each stage but the last, from little data to all of it;
    the last stage leaves one. switches: most levels that a mutation raises at once.
    """

    generations: int = 30
    offspring: int = 16
    survivors: tuple[int, ...] = (4, 2)
    switches: int = 3
    seed: int = 0

    @property
    def stages(self) -> int:
        """Number of stages of selection."""
        return len(self.survivors) + 1


@dataclass(frozen=True)
class Generation:
    """State after a generation: the best candidate and its score on all data."""

    number: int
    best: Candidate
    score: float


def evolve(
    sizes: Sequence[int],
    fits: Fits,
    start: Candidate,
    score: Score,
    settings: Settings,
    *,
    stop: Callable[[], bool] = lambda: False,
    seen: Callable[[Generation], None] = lambda generation: None,
) -> Generation:
    """The best candidate found; never worse on all data than `start`, which must fit.

    sizes: levels of each item. fits: whether a candidate is within every budget; raising a level
    must not make one fit. score: of candidates on the data of a stage, lower is better; it may
    work on them in parallel. stop: asked before every generation. seen: told after each.

    The same arguments give the same result. Raises ValueError when `start` does not fit.
    """
    if not fits(start):
        raise ValueError("the start exceeds a budget")
    rng = np.random.default_rng(settings.seed)
    last = settings.stages - 1
    best = Generation(0, start, score([start], last)[0])
    seen(best)
    for number in range(1, settings.generations + 1):
        if stop():
            break
        children = _offspring(rng, best.best, sizes, fits, settings)
        if not children:
            break
        for stage, count in enumerate(settings.survivors):
            children = _fittest(children, score(children, stage), count)
        values = score(children, last)
        winner = min(range(len(children)), key=values.__getitem__)
        if values[winner] < best.score:
            best = Generation(number, children[winner], values[winner])
        else:
            best = Generation(number, best.best, best.score)
        seen(best)
    return best


def _fittest(
    candidates: Sequence[Candidate], values: Sequence[float], count: int
) -> list[Candidate]:
    order = sorted(range(len(candidates)), key=lambda i: (values[i], i))
    return [candidates[i] for i in order[:count]]


def _offspring(
    rng: np.random.Generator,
    parent: Candidate,
    sizes: Sequence[int],
    fits: Fits,
    settings: Settings,
) -> list[Candidate]:
    found: dict[Candidate, None] = {}
    for _ in range(settings.offspring * _TRIES):
        if len(found) == settings.offspring:
            break
        child = mutated(rng, parent, sizes, fits, settings.switches)
        if child is not None and child != parent:
            found.setdefault(child)
    return list(found)


def mutated(
    rng: np.random.Generator,
    parent: Candidate,
    sizes: Sequence[int],
    fits: Fits,
    switches: int = 3,
) -> Candidate | None:
    """A candidate near the parent that fits; None where lowering all else would not do."""
    child = list(parent)
    count = int(min(rng.integers(1, switches + 1), rng.integers(1, switches + 1)))
    raised: set[int] = set()
    for _ in range(count):
        able = [i for i in range(len(child)) if child[i] < sizes[i] - 1]
        if not able:
            break
        chosen = int(rng.choice(able))
        child[chosen] += 1
        raised.add(chosen)
    lowered: set[int] = set()
    while not fits(tuple(child)):
        able = [i for i in range(len(child)) if child[i] > 0 and i not in raised]
        if not able:
            return None
        chosen = int(rng.choice(able))
        child[chosen] -= 1
        lowered.add(chosen)
    return filled(rng, tuple(child), sizes, fits, lowered)


def filled(
    rng: np.random.Generator,
    candidate: Candidate,
    sizes: Sequence[int],
    fits: Fits,
    untouched: set[int] | frozenset[int] = frozenset(),
) -> Candidate:
    """The candidate with levels raised, in random order, for as long as it fits."""
    child = list(candidate)
    open_items = [i for i in range(len(child)) if i not in untouched]
    while open_items:
        left = []
        for i in rng.permutation(open_items):
            if child[i] + 1 < sizes[i]:
                child[i] += 1
                if fits(tuple(child)):
                    left.append(int(i))
                else:
                    child[i] -= 1
        open_items = sorted(left)
    return tuple(child)
