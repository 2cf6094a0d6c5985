"""Greedy removal on costs that are known."""

from __future__ import annotations

from itertools import combinations

import pytest

from lwqc.decide.allocators.greedy import greedy

COST = {"a": 3.0, "b": 1.0, "c": 2.0, "d": 1.0}


def additive(removed) -> float:
    return sum(COST[name] for name in removed)


def names(*arguments, **options) -> str:
    return "".join(step.removed for step in greedy(*arguments, **options))


def test_cheapest_first_and_ties_to_the_earlier() -> None:
    steps = list(greedy("abcd", additive, 4))
    assert [s.removed for s in steps] == ["b", "d", "c", "a"]
    assert [s.cost for s in steps] == [1, 2, 4, 7]


def test_rescoring_sees_what_is_already_gone() -> None:
    together = {frozenset("bd"): 10.0}
    evaluate = lambda removed: together.get(removed, additive(removed))  # noqa: E731
    assert names("abcd", evaluate, 2) == "bc"
    exhaustive = min(combinations("abcd", 2), key=lambda pair: evaluate(frozenset(pair)))
    assert set(exhaustive) == set("bc")


@pytest.mark.parametrize(
    ("count", "protected", "readmit_after", "expected"),
    [
        (2, "bd", None, "ca"),
        (4, "bd", None, "ca"),  # the others stay
        (3, "bd", 1, "cbd"),
        (4, "bd", 3, "cabd"),  # let in early: nothing else is left
        (9, "", None, "bdca"),
        (0, "", None, ""),
    ],
)
def test_protection(count, protected, readmit_after, expected) -> None:
    found = names("abcd", additive, count, protected=protected, readmit_after=readmit_after)
    assert found == expected


def test_number_of_evaluations() -> None:
    seen = []
    list(greedy("abcd", lambda removed: seen.append(removed) or 0.0, 3))
    assert len(seen) == 4 + 3 + 2
