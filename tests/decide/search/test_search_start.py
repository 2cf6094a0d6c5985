"""Starts on a made-up space: two layers of which one can get narrower, and a branch."""

from __future__ import annotations

import numpy as np

from lwqc.decide.allocators.knapsack import choose
from lwqc.decide.search.scores import pairwise_allocator
from lwqc.decide.search.space import Item, SearchSpace, Stored, widths
from lwqc.decide.search.start import allocated, lowered, raised, starts
from lwqc.decide.search.trial_model import Cut
from lwqc.plans.plan import SiteEntry
from lwqc.quant.formats import WeightFormat

FOUR, EIGHT = (SiteEntry(weight=WeightFormat(bits, 32)) for bits in (4, 8))


def space() -> SearchSpace:
    masks = tuple(widths(np.arange(64), 8, 0.125))
    items = (
        Item("a", "format", ("w4", "w8", "float"), (0.02, 0.001, 0.0)),
        Item("b", "format", ("w4", "w8", "float"), (0.04, 0.002, 0.0)),
        Item("g", "width", tuple("12345678"), tuple(0.1 * k for k in range(7, -1, -1))),
        Item("r", "branch", ("removed", "kept"), (0.5, 0.0)),
    )  # fmt: skip
    owner = np.arange(64)
    stored = (
        Stored("a", (64, 128), 4, (Cut(0, 2, owner),), 0, (FOUR, EIGHT, None)),
        Stored("b", (128, 64), 4, (Cut(1, 2, owner),), 1, (FOUR, EIGHT, None)),
        Stored("c", (32, 32), 4, users=(frozenset({3}),)),
    )
    return SearchSpace(items, stored, {2: masks}, 100)


def test_costs_multiply_and_branches_take_their_weights_along() -> None:
    found = space()
    whole = found.cost(found.top)["size_bytes"]
    assert whole == 100 + 4 * (2 * 64 * 128 + 32 * 32)
    assert found.cost((2, 2, 7, 0))["size_bytes"] == whole - 4 * 32 * 32
    narrow = (0, 2, 3, 1)
    expected = 100 + FOUR.size_bytes(32, 128) + 4 * 128 * 32 + 4 * 32 * 32
    assert found.cost(narrow)["size_bytes"] == expected
    assert found.cost(found.top)["size_bytes"] == whole  # and nothing is left of the others


def test_starts_fit_and_formats_alone_come_first() -> None:
    found = space()
    limit = 0.3 * found.cost(found.top)["size_bytes"]

    def size(candidate):
        return found.cost(candidate)["size_bytes"]

    offered = starts(found, size, limit, lambda c: size(c) <= limit)
    assert offered[0][2:] == (7, 1)
    assert all(size(c) <= limit for c in offered)
    assert len({c[2] for c in offered}) > 2


def test_what_is_left_of_a_budget_is_used() -> None:
    found = space()
    limit = 0.4 * found.cost(found.top)["size_bytes"]

    def fits(candidate):
        return found.cost(candidate)["size_bytes"] <= limit

    full = raised(found, (0, 0, 0, 0), lambda c: found.cost(c)["size_bytes"], fits)
    assert fits(full)
    for i, level in enumerate(full):
        more = (*full[:i], level + 1, *full[i + 1 :])
        assert level == found.items[i].top or not fits(more)


def test_what_cannot_fit_ends_at_the_strongest() -> None:
    found = space()
    assert lowered(found, found.top, lambda c: found.cost(c)["size_bytes"], lambda c: False) == (
        0, 0, 0, 0,
    )  # fmt: skip


def test_two_sites_that_err_together_are_not_both_lowered() -> None:
    alone = (0.010, 0.010, 0.012, 0.012)
    items = tuple(
        Item(name, "format", ("w4", "w8", "float"), (error, error / 10, 0.0))
        for name, error in zip("abcd", alone, strict=True)
    )
    stored = tuple(
        Stored(item.name, (64, 128), 4, (), i, (FOUR, EIGHT, None)) for i, item in enumerate(items)
    )
    found = SearchSpace(items, stored, {})

    def score(candidates, stage):
        errors = [
            [item.errors[level] for item, level in zip(items, candidate, strict=True)]
            for candidate in candidates
        ]
        return [sum(e) + 10 * float(np.sqrt(e[0] * e[1])) for e in errors]

    def size(candidate):
        return found.cost(candidate)["size_bytes"]

    limit = size((0, 0, 1, 1))
    plain = allocated(found, found.top, range(4), size, limit, choose)
    paired = allocated(found, found.top, range(4), size, limit, pairwise_allocator(found, score))
    assert plain == (0, 0, 1, 1)
    assert paired is not None
    assert size(paired) <= limit
    assert paired == (1, 1, 0, 0)
    assert score([paired], 0) < score([plain], 0)
