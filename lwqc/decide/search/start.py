"""Where a search starts: structure by an ordered prefix, then formats by an exact knapsack."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from lwqc.decide.allocators.evolutionary import Candidate, Fits
from lwqc.decide.allocators.knapsack import Option, choose
from lwqc.decide.allocators.prefix import at_budget, prefix_order
from lwqc.decide.search.space import SearchSpace

CostOf = Callable[[Candidate], float]
Allocate = Callable[[Sequence[Sequence[Option]], float], list[int] | None]
_SHARES = (1.0, 0.93, 0.85, 0.77, 0.68, 0.58, 0.47, 0.35, 0.22, 0.1)
_FEW_SHARES = (1.0, 0.85, 0.68)  # beside fewer tokens


def starts(
    space: SearchSpace, cost: CostOf, limit: float, fits: Fits, allocate: Allocate = choose
) -> list[Candidate]:
    """Candidates that fit, from formats alone to more and more structure removed.

    cost, limit: of the budget that binds most. fits: every budget. The last resort is whatever
    comes closest: everything at its strongest.
    """
    found: dict[Candidate, None] = {}
    if not space.of_kind("format"):
        every = allocated(space, space.top, range(len(space.items)), cost, limit, allocate)
        found.setdefault(fitted(space, every or space.top, cost, fits))
    for top in _tops(space):
        shares = _SHARES if top == space.top else _FEW_SHARES
        for structure in structures(space, cost, top, shares):
            items = space.of_kind("format")
            candidate = allocated(space, structure, items, cost, limit, allocate)
            if candidate is not None:
                found.setdefault(fitted(space, candidate, cost, fits))
    return [c for c in found if fits(c)] or [lowered(space, space.top, cost, fits)]


def _tops(space: SearchSpace) -> list[Candidate]:
    """Nothing changed but the tokens: all of them first, then fewer and fewer."""
    found = [space.top]
    for item in space.of_kind("token"):
        found += [_with(space.top, item, level) for level in reversed(range(space.items[item].top))]
    return found


def structures(
    space: SearchSpace,
    cost: CostOf,
    top: Candidate | None = None,
    shares: Sequence[float] = _SHARES,
) -> list[Candidate]:
    """Less and less structure, always what costs the least error for what it saves.

    top: with nothing gone, None for nothing changed at all. shares: of what structure can save
    that is left.
    """
    top = space.top if top is None else top
    items = [*space.of_kind("width"), *space.of_kind("branch")]
    if not items:
        return [top]
    options = [
        [
            Option(cost(_with(top, i, level)), error)
            for level, error in enumerate(space.items[i].errors)
        ]
        for i in items
    ]
    steps = prefix_order(options)
    least = sum(min(o.cost for o in item) for item in options)
    most = sum(item[-1].cost for item in options)
    found: dict[Candidate, None] = {}
    for share in shares:
        levels = at_budget(options, steps, least + share * (most - least) * (1 + 1e-9))
        candidate = list(top)
        for i, level in zip(items, levels or [0] * len(items), strict=True):
            candidate[i] = level
        found.setdefault(tuple(candidate))
    return list(found)


def allocated(
    space: SearchSpace,
    start: Candidate,
    items: Sequence[int],
    cost: CostOf,
    limit: float,
    allocate: Allocate = choose,
) -> Candidate | None:
    """The start with the levels of least predicted error of some items within the limit, if any.

    Costs are taken to add up, which they do for formats.
    """
    base = cost(start)
    options = [
        [
            Option(cost(_with(start, i, level)) - base, error)
            for level, error in enumerate(space.items[i].errors)
        ]
        for i in items
    ]
    picked = allocate(options, limit - base)
    if picked is None:
        return None
    candidate = list(start)
    for i, level in zip(items, picked, strict=True):
        candidate[i] = level
    return tuple(candidate)


def fitted(space: SearchSpace, start: Candidate, cost: CostOf, fits: Fits) -> Candidate:
    """Lowered until it fits, then raised for as long as it does.

    What is left of a budget is used: a candidate far below it may diverge less than better ones,
    as the outputs of a broken model are close to uniform.
    """
    return raised(space, lowered(space, start, cost, fits), cost, fits)


def raised(space: SearchSpace, start: Candidate, cost: CostOf, fits: Fits) -> Candidate:
    """Levels go up one by one, the most predicted error per cost first, for as long as it fits."""
    candidate, full = start, set[int]()
    while len(full) < len(candidate):
        best: tuple[float, int, Candidate] | None = None
        now = cost(candidate)
        for i, level in enumerate(candidate):
            errors = space.items[i].errors
            if i in full or level == space.items[i].top:
                full.add(i)
                continue
            trial = _with(candidate, i, level + 1)
            price = (errors[level + 1] - errors[level]) / max(cost(trial) - now, 1e-12)
            if best is None or price < best[0]:
                best = (price, i, trial)
        if best is None:
            break
        if fits(best[2]):
            candidate = best[2]
        else:
            full.add(best[1])
    return candidate


def lowered(
    space: SearchSpace,
    start: Candidate,
    cost: CostOf,
    fits: Fits,
    items: Collection[int] | None = None,
) -> Candidate:
    """Levels go down, the least predicted error per cost saved first, until it fits.

    items: whose levels; None for all. Ends with everything at its strongest where nothing fits.
    """
    candidate = start
    while not fits(candidate):
        best: tuple[float, Candidate] | None = None
        now = cost(candidate)
        for i, level in enumerate(candidate):
            errors = space.items[i].errors
            for lower in range(level if items is None or i in items else 0):
                trial = _with(candidate, i, lower)
                saved = now - cost(trial)
                if saved > 0:
                    price = (errors[lower] - errors[level]) / saved
                    if best is None or price < best[0]:
                        best = (price, trial)
        if best is None:
            return candidate
        candidate = best[1]
    return candidate


def _with(candidate: Candidate, item: int, level: int) -> Candidate:
    return (*candidate[:item], level, *candidate[item + 1 :])
