"""Which decisions flip, and what that does to single classes."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from lwqc.errors import InputError
from lwqc.runtime.flips import compare_decisions, list_kind

RIGHT = np.array([0, 0, 0, 0, 1, 1, 1, 1, 2, 2])
BEFORE = np.array([0, 0, 0, 1, 1, 1, 1, 1, 2, 0])
AFTER = np.array([0, 0, 1, 0, 1, 0, 0, 0, 2, 2])


def test_flips_and_changes_of_classes() -> None:
    found = compare_decisions(BEFORE, AFTER, RIGHT)
    assert [f.sample for f in found.flipped] == [2, 3, 5, 6, 7, 9]
    assert (found.flipped[0].right, found.flipped[0].before, found.flipped[0].after) == (
        "0", "0", "1",
    )  # fmt: skip
    assert [(c.name, c.samples, c.before, c.after) for c in found.classes] == [
        ("1", 4, 1.0, 0.25),
        ("0", 4, 0.75, 0.75),
        ("2", 2, 0.5, 1.0),
    ]
    assert found.worst == 0.75
    for one in found.classes:
        assert one.low <= one.after - one.before <= one.high
    assert found.classes[0].high < 0 <= found.classes[1].high


def test_without_labels_what_was_decided_before_is_right() -> None:
    found = compare_decisions(BEFORE, AFTER, None, "the original")
    assert {c.before for c in found.classes} == {1.0}
    assert found.flipped[0].right is None


def test_nothing_flips() -> None:
    found = compare_decisions(BEFORE, BEFORE, RIGHT)
    assert not found.flipped
    assert found.worst == 0
    assert {(c.low, c.high) for c in found.classes} == {(0, 0)}


def test_lists() -> None:
    found = compare_decisions(BEFORE, AFTER, RIGHT)
    rows = list(csv.DictReader(found.text("csv").splitlines()))
    assert rows[0] == {"sample": "2", "right": "0", "before": "0", "after": "1"}
    assert json.loads(found.text("json"))["classes"][0]["name"] == "1"
    assert (list_kind("a/b.CSV"), list_kind("b.json")) == ("csv", "json")
    with pytest.raises(InputError, match=r"a list of flipped samples is a \.csv or a \.json"):
        list_kind("b.txt")
