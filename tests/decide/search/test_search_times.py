"""Times of sites at any width, and of the rest by what the profiler tells of each operator."""

from __future__ import annotations

import numpy as np
import pytest

from lwqc.compile.timing import activation_shapes, halved
from lwqc.decide.search import times as search_times
from lwqc.decide.search.log import SearchLog
from lwqc.decide.search.search_model import search_model
from lwqc.decide.search.space import Written
from lwqc.decide.search.times import _shared_out, constant, measured_times
from tests.decide.search.searched import opened


def test_types_get_their_own_time_and_the_rest_goes_by_bytes() -> None:
    made = tuple(
        Written(op, elements)
        for op, elements in (("Attention", 1), ("Attention", 3), ("Relu", 10), ("Add", 30))
    )
    times = _shared_out(made, 10.0, {"Attention": 4.0, "Gelu": 9.0})
    assert times == pytest.approx([1.0, 3.0, 1.5, 4.5])


def test_a_profile_that_claims_more_than_there_is_is_scaled_down() -> None:
    made = (Written("Attention", 1), Written("", 5), Written("Add", 1))
    times = _shared_out(made, 2.0, {"Attention": 4.0})
    assert times == pytest.approx([2.0, 0.0, 0.0])


@pytest.mark.parametrize(
    ("quarter", "stays"), [(0.25, 0.0), (0.2, 0.0), (0.4, 0.2), (1.0, 1.0), (1.3, 1.0)]
)
def test_what_stays_lies_on_a_line_and_within_the_time(quarter, stays) -> None:
    assert constant(1.0, quarter) == pytest.approx(stays)


def test_layers_of_half_the_width() -> None:
    work = opened()
    shapes = activation_shapes(work, work.job.data.serve[0])
    halves = {n: halved(s, shapes[n]) for n, s in work.sites.items()}
    assert any(h is None for h in halves.values()), "the image has one channel"
    found = [(work.sites[n], shapes[n], h) for n, h in halves.items() if h is not None]
    assert {"Conv", "Gemm"} & {site.op for site, _, _ in found}
    for site, shape, (weight, narrow) in found:
        assert np.prod(weight) * 4 == np.prod(site.shape)
        assert np.prod(narrow) * 2 == np.prod(shape)


def test_a_narrower_site_saves_what_half_of_it_saves(monkeypatch, tmp_path) -> None:
    """Timings are given: a millisecond at any width, and one more for the weights there are."""

    def seconds(work, site, entry, shape, weight):
        time = 1e-3 * (1 + np.prod(weight) / np.prod(site.shape))
        return time, time / 2

    def in_float(site, shape, weight):
        return seconds(None, site, None, shape, weight)[0]

    monkeypatch.setattr(search_times, "form_seconds", seconds)
    monkeypatch.setattr(search_times, "float_seconds", in_float)
    monkeypatch.setattr(search_times, "reference_ms", lambda work, log: 1e3)
    monkeypatch.setattr(search_times, "_operator_ms", lambda work: {})
    found = search_model(opened(), {"format", "width"}, fast=True, small=False)
    times = measured_times(found, SearchLog(tmp_path / "log", resume=False))
    pairs = zip(found.space.stored, times.stored, times.constant, strict=True)
    stored = [(ms, stays) for s, ms, stays in pairs if len(ms) > 1 and s.cuts]
    assert stored
    for milliseconds, constants in stored:
        assert milliseconds[-1] == pytest.approx(2.0)
        for whole, stays in zip(milliseconds, constants, strict=True):
            assert stays in (pytest.approx(whole / 2), pytest.approx(whole / 10))
    assert any(constants[-1] == pytest.approx(1.0) for _, constants in stored)
