"""Fewer tokens as levels of a search: what is offered, what it is predicted to take, what comes.

Timings are given, so that the tests do not depend on the machine.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import lwqc
from lwqc.compile.execute import execute
from lwqc.compile.version import Version
from lwqc.decide.budgets import max_latency
from lwqc.decide.compress import open_version
from lwqc.decide.search import shorter, times
from lwqc.decide.search.joint_plan import planned
from lwqc.decide.search.log import SearchLog
from lwqc.decide.search.search_model import Judged, SearchModel, search_model
from lwqc.decide.search.shorter import Shorter, shorter_models
from lwqc.decide.search.start import starts
from lwqc.decide.search.trial_model import ALL, TrialModel
from lwqc.plans.goals import Goals
from lwqc.plans.recipe import find, with_token_share, without_tokens
from lwqc.runtime.session import Session
from tests.tiny_vit import PATCHES, WIDTH, TinyVit, dense

FEEDS = [
    {"x": np.random.default_rng(seed).standard_normal((4, PATCHES, WIDTH), dtype=np.float32)}
    for seed in range(4)
]
KINDS = ("format", "branch", "token")
LATENCY = "latency_ms"


def opened(vit: TinyVit | None = None) -> Version:
    return open_version(ir.from_proto((vit or TinyVit(layers=3)).build()), data=FEEDS)


@lru_cache(maxsize=1)
def shared() -> Version:
    """What is known of its tokens is measured once."""
    return opened()


def work_left(base: Version, found: list[Shorter]) -> list[float]:
    """Each model with fewer tokens takes as much of the time as is left of the work."""
    return [1 - one.decision.saved for one in found]


@pytest.fixture(autouse=True)
def timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shorter, "_times", work_left)


@lru_cache(maxsize=1)
def searched() -> tuple[SearchModel, TrialModel]:
    models = shorter_models(shared(), shared(), None, SearchLog())
    found = search_model(shared(), KINDS, by=Judged(shorter=models))
    return found, TrialModel(found.spec)


def test_fewer_tokens_first_and_only_what_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    models = shorter_models(shared(), shared(), None, SearchLog())
    saved = [one.decision.saved for one in models]
    assert saved == sorted(saved, reverse=True)
    assert len(models) > 2
    assert models[-1].error == pytest.approx(0, abs=1e-9)  # what nothing reads
    slow = [1.2, 0.6, 0.595, 1.0, 1.01]
    monkeypatch.setattr(shorter, "_times", lambda base, found: slow[: len(found)])
    kept = shorter_models(shared(), shared(), None, SearchLog())
    assert [one.time for one in kept] == [0.595]


def test_without_data_or_where_none_can_go_all_stay() -> None:
    named = open_version(ir.from_proto(TinyVit().build()))
    for work in (named, opened(TinyVit(read=dense))):
        assert shorter_models(work, work, None, SearchLog()) == []


def test_trials_are_the_models_that_come_of_them(tmp_path: Path) -> None:
    found, trial = searched()
    space, (item,) = found.space, found.space.of_kind("token")
    branch = next(i for i in space.of_kind("branch") if space.items[i].name == "mlp0")
    for level in range(space.items[item].top):
        candidate = list(space.top)
        candidate[item], candidate[branch] = level, 0
        plan = planned(found, tuple(candidate), "", compensate=False)
        done = execute(found.version(tuple(candidate)), Goals(), plan)
        assert [b.name for b in plan.remove] == ["mlp0"]
        made, tried = Session(done.model)(FEEDS[1]), trial.outputs(tuple(candidate), FEEDS[1])
        assert made.keys() == tried.keys()
        for name, value in made.items():
            np.testing.assert_allclose(tried[name], value, atol=1e-6)
        assert trial.score(tuple(candidate), ALL) > 0


def test_branches_that_choose_tokens_stay() -> None:
    found, _ = searched()
    space, (item,) = found.space, found.space.of_kind("token")
    assert space.tokens is not None
    held = space.tokens.held[0]
    assert held
    assert not space.tokens.held[-1]
    without = tuple(0 if i in held else c for i, c in enumerate(space.top))
    shorter_too = (*without[:item], 0, *without[item + 1 :])
    assert all(space.effective(shorter_too)[i] == space.items[i].top for i in held)
    assert space.effective(without) == without
    assert not planned(found, shorter_too, "", compensate=False).remove


def test_times_are_those_that_were_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = searched()
    monkeypatch.setattr(times, "reference_ms", lambda work, log: 10.0)
    monkeypatch.setattr(times, "_float_share", lambda work: 1.0)
    monkeypatch.setattr(times, "_operator_ms", lambda work: {})
    monkeypatch.setattr(times, "form_seconds", lambda work, site, *rest: (1e-3, 5e-4))
    monkeypatch.setattr(times, "float_seconds", lambda site, shape, weight: 1e-3)
    max_latency.BUDGET.prepare(found, SearchLog())
    space, (item,) = found.space, found.space.of_kind("token")
    whole = space.cost(space.top)[LATENCY]
    for level, short in enumerate(found.shorter):
        candidate = (*space.top[:item], level, *space.top[item + 1 :])
        assert space.cost(candidate)[LATENCY] == pytest.approx(short.time * whole, rel=0.02)

    def cost(candidate: tuple[int, ...]) -> float:
        return space.cost(candidate)[LATENCY]

    limit = 0.4 * whole
    offered = starts(space, cost, limit, lambda c: cost(c) <= limit)
    assert all(cost(c) <= limit for c in offered)
    assert len({c[item] for c in offered}) > 1


def test_a_share_that_is_asked_for_is_not_searched_again() -> None:
    recipe = with_token_share(find("auto"), 0.3)
    rest = without_tokens(recipe)
    assert rest.tokens is None
    assert rest.search_in is not None
    assert rest.search_in.kinds == ("format", "width", "branch")
    assert without_tokens(find("evit-w8")).search_in is None


def test_a_time_budget_takes_fewer_tokens_and_the_plan_replays(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Only fewer tokens save time here: 8 bits take as long as floats."""
    monkeypatch.setattr(times, "form_seconds", lambda work, site, *rest: (1e-3, 1e-3))
    monkeypatch.setattr(times, "float_seconds", lambda site, shape, weight: 1e-3)
    monkeypatch.setattr(max_latency, "time_share", lambda work, model: 0.68)
    monkeypatch.setattr(times, "time_share", lambda work, model: 1.0)
    recipe = find("evopress-joint")
    kinds = recipe.search_in.model_copy(update={"kinds": ("format", "token")})  # type: ignore[union-attr]
    path = tmp_path / "vit.onnx"
    lwqc.save(ir.from_proto(TinyVit(layers=3, opset=23).build()), path)
    chosen = recipe.model_copy(update={"search_in": kinds, "method": "rtn", "clean": True})
    done = lwqc.compress(path, recipe=chosen, max_latency=0.7, data=FEEDS, effort="low")
    assert done.plan.tokens
    assert done.plan.clean is not None
    assert "less work" in " ".join(done.search.notes)  # type: ignore[union-attr]
    report = done.save(tmp_path / "a.onnx", plan=tmp_path / "plan.json")
    assert report.tokens is not None
    again = lwqc.apply(path, lwqc.Plan.load(tmp_path / "plan.json"), data=FEEDS)
    again.save(tmp_path / "b.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
