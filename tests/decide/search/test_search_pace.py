"""Times of candidates: parts are fitted to what whole candidates took."""

from __future__ import annotations

import numpy as np
import pytest

from lwqc.decide.search.pace import TIME as GUESS
from lwqc.decide.search.pace import fitted
from tests.decide.search.searched import changed, found


def test_nothing_measured_leaves_the_guess() -> None:
    assert fitted([], GUESS) is GUESS


def test_the_last_candidate_is_exact_and_others_are_close() -> None:
    rng = np.random.default_rng(0)
    true = GUESS * [1.3, 0.8, 2.0, 0.7, 1.5]
    parts = [rng.uniform(0.1, 1, len(GUESS)) for _ in range(12)]
    measured = [(p, float(p @ true)) for p in parts]
    pace = fitted(measured[:6], GUESS)
    assert measured[5][0] @ pace == pytest.approx(measured[5][1])

    def worst(pace) -> float:
        return max(abs(p @ pace / time - 1) for p, time in measured[6:])

    assert worst(pace) < 0.1
    assert worst(pace) < worst(fitted(measured[:1], GUESS)) < worst(GUESS)
    assert (pace > 0).all()


def test_a_part_that_seems_to_take_less_than_nothing_still_counts() -> None:
    one, other = np.eye(len(GUESS))[0], np.ones(len(GUESS))
    pace = fitted([(one, 50.0), (other, 0.5)], GUESS)
    assert (pace > 0).all()


def test_operators_beside_sites_shrink_with_widths() -> None:
    space = found().space
    whole, narrow = space.top, changed(width_0=0)
    item = space.of_kind("width")[0]
    writes = [w for w in space.written if item in {cut.item for cut in w.cuts}]
    assert any(w.op for w in writes)
    keep = space.keeps[item][0]
    for made in writes:
        (axis,) = {cut.axis for cut in made.cuts if cut.item == item}
        assert made.shape[axis] == keep.size
    assert space.cost(narrow)["macs"] < space.cost(whole)["macs"]
    assert space.cost(whole)["macs"] == found().work.original.macs
