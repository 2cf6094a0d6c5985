"""Searches that a fit to the original follows: what they expect of it, and how plans have it."""

import pytest

pytest.importorskip("torch", reason="needs the extra lwqc[torch]")

import lwqc
from lwqc.compile import affordable_steps
from lwqc.compile.fitted import Pace
from lwqc.decide.compress import open_version
from lwqc.decide.search.control import SearchControl
from lwqc.decide.search.limits import Limits
from lwqc.decide.search.recovered import Recovered, trials
from lwqc.decide.search.space import SIZE
from lwqc.decide.strategy import row
from lwqc.errors import InputError
from lwqc.plans.goals import Goals
from lwqc.plans.plan import Learn
from tests.compile.test_learned import error, feeds, original
from tests.decide.search.searched import changed, found
from tests.short import short


def test_the_rest_of_the_time_goes_into_a_fit_that_the_plan_repeats(monkeypatch, tmp_path):
    """40 s: half for the search, and of what it left nine tenths, some of which are for checks."""
    short(monkeypatch)
    monkeypatch.setattr(affordable_steps, "timed", lambda *args: Pace(0.2, 0.1, 6))
    options = {"max_macs": 0.5, "data": feeds(30), "effort": "low"}
    plain = lwqc.compress(original(), **options)
    done = lwqc.compress(original(), recover=True, time_limit=40, **options)
    assert done.plan.learn is not None
    assert 20 <= done.plan.learn.steps <= (0.9 * 40 / 2 - 1.6) / 0.2
    assert error(done.model) < 0.9 * error(plain.model)
    assert any(note.startswith("learned on 24 sets of inputs, 6 held") for note in done.plan.notes)
    assert done.search is not None
    assert any(n.startswith("60 steps of a fit leave of the error") for n in done.search.notes)
    done.save(tmp_path / "a.onnx", plan=tmp_path / "plan.json")
    plan = lwqc.Plan.load(tmp_path / "plan.json")
    lwqc.apply(original(), plan, data=feeds(30)).save(tmp_path / "b.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_too_little_time_is_told_and_no_data_is_an_error(monkeypatch):
    monkeypatch.setattr(affordable_steps, "timed", lambda *args: Pace(10.0, 0.0, 6))
    done = lwqc.compress(original(), recipe="w4", recover=True, time_limit=60, data=feeds(30))
    assert done.plan.learn is None
    assert any(note.startswith("nothing was learned: ") for note in done.plan.notes)
    with pytest.raises(InputError, match="--recover: fits to the original on data: give --data"):
        lwqc.compress(original(), recover=True)


def test_a_row_of_models_is_not_fitted_in_the_time_of_one():
    work = open_version(original(), data=feeds(6))
    control = SearchControl(recover=True, time_limit_s=10)
    with pytest.raises(InputError, match="leave out --pareto"):
        next(row(work, Goals(max_size="20%"), "auto", control, 2))


def test_a_recipe_that_learns_keeps_its_own_way_and_fits_the_whole_too():
    done = lwqc.plan(original(), recipe="adaround", recover=True, data=feeds(30))
    assert done.learn == Learn(parts="layers", whole=True)


def test_each_kind_is_tried_alone_and_its_share_changes_what_its_errors_count():
    space = found().space
    top, items = space.cost(space.top)[SIZE], space.items
    limits = Limits({SIZE: 0.4 * top})
    kinds = trials(space, limits)
    assert kinds.keys() == {"format", "width", "branch"}
    for kind, candidate in kinds.items():
        others = [i for i, item in enumerate(items) if item.kind != kind]
        assert all(candidate[i] == items[i].top for i in others)
    assert space.cost(kinds["format"])[SIZE] <= 0.7 * top
    formats, widths = changed(format_0=0), changed(width_0=0)
    try:
        recovered = Recovered(space, {"format": 0.5, "width": 0.1})
        assert recovered.left(formats) == pytest.approx(0.5)
        assert recovered.left(widths) == pytest.approx(0.1)
        assert 0.1 < recovered.left(changed(format_0=0, width_0=0)) < 0.5
        assert recovered.left(space.top) == 1
    finally:
        space.items = items
