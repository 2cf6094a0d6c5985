"""Searches over whole plans, end to end on the demo model."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import os
import signal
from functools import lru_cache

import numpy as np
import pytest

from lwqc.compile.reference import Reference
from lwqc.compile.version import Version
from lwqc.decide.allocators.evolutionary import Settings
from lwqc.decide.budgets import max_latency
from lwqc.decide.compress import compress_version, open_version
from lwqc.decide.search import joint as module
from lwqc.decide.search import whole as whole_search
from lwqc.decide.search.control import EFFORTS, SearchControl
from lwqc.decide.search.joint import joint, pareto, searches
from lwqc.decide.search.log import SearchLog
from lwqc.decide.search.overhead import measure_overhead
from lwqc.decide.search.search_model import SearchModel, search_model
from lwqc.decide.search.times import Times
from lwqc.decide.search.trajectory import Trajectory
from lwqc.errors import InputError
from lwqc.model import io
from lwqc.plans.bounds import Amount
from lwqc.plans.goals import Goals
from lwqc.plans.plan import Plan
from lwqc.plans.recipe import SearchRecipe, find
from lwqc.runtime.measure import Metric
from lwqc.runtime.session import Session
from tests.decide.search.searched import DATA, opened

QUICK = Settings(generations=4, offspring=6, survivors=(3,))


@lru_cache(maxsize=1)
def shared() -> Version:
    return opened()


@lru_cache(maxsize=8)
def space(kinds, **options) -> SearchModel:
    found = search_model(shared(), kinds, **options)
    measure_overhead(found)
    return found


@pytest.fixture(autouse=True)
def quick(monkeypatch) -> None:
    """Short searches, and statistics are taken once."""

    def known(work, kinds, **options):
        found = space(kinds, **options)
        own = copy.copy(found.space)
        own.costs, own.pace = {}, {}
        own.forget()
        same = work if work.model is found.work.model else found.work
        return dataclasses.replace(found, work=same, space=own)

    monkeypatch.setitem(EFFORTS, "low", QUICK)
    monkeypatch.setattr(module, "search_model", known)
    monkeypatch.setattr(module, "measure_overhead", lambda found: None)  # its copy has it


def goals(share: float, **more) -> Goals:
    return Goals(max_size=Amount(share, True), **more)


def searched(share: float, recipe: str = "auto", **control):
    nearest = find(recipe).model_copy(update={"method": "rtn"})
    done = compress_version(shared(), goals(share), nearest, SearchControl(effort="low", **control))
    return done, done.plan.model_copy(update={"recipe": ""})


@lru_cache(maxsize=1)
def found_alone() -> Plan:
    """What this process finds within a tenth of the bytes."""
    return searched(0.1, processes=1)[1]


@pytest.mark.parametrize("share", [0.25, 0.12, 0.07])
def test_budgets_are_met_and_used(share, tmp_path) -> None:
    done, _ = searched(share)
    report = done.save(tmp_path / "out.onnx")
    assert report.met
    assert 0.9 * share < report.output_bytes / report.source_bytes <= share
    assert report.search is not None
    assert report.search.best <= report.search.start
    assert report.search.evaluations > 6
    assert json.loads(report.to_json())["search"]["measure"] == "kl"


def test_prunes_and_quantizes_where_bits_alone_are_not_enough() -> None:
    done, plan = searched(0.05)
    assert plan.quantize
    assert plan.prune is not None or plan.remove
    outputs = Session(done.model)(done.work.job.data.fit.first())
    assert all(v.dtype.kind == "f" for v in outputs.values())


@pytest.mark.parametrize(
    ("recipe", "share", "fields"),
    [
        ("evopress-bits", 0.2, {"quantize"}),
        ("clado", 0.2, {"quantize"}),
        ("evopress-width", 0.5, {"prune"}),
        ("rd", 0.5, {"prune"}),
        ("optin", 0.5, {"prune"}),
        ("ecoflap", 0.5, {"prune"}),
        ("cfsp", 0.5, {"prune"}),
        ("evopress-depth", 0.7, {"remove"}),
    ],
)
def test_recipes_change_what_they_say(recipe, share, fields) -> None:
    done, plan = searched(share, recipe)
    changed = {f for f in ("quantize", "prune", "remove") if getattr(plan, f)}
    assert changed == fields
    assert io.serialized_bytes(done.model) <= share * done.work.original.size_bytes
    assert done.search is not None
    assert set(done.search.items) == {
        {"quantize": "format", "prune": "width", "remove": "branch"}[f] for f in fields
    }


def test_products_are_a_budget(tmp_path) -> None:
    control = SearchControl(effort="low")
    done = compress_version(shared(), Goals(max_macs=Amount(0.6, True)), "auto", control)
    report = done.save(tmp_path / "out.onnx")
    (outcome,) = report.outcomes
    assert (outcome.name, outcome.met) == ("MACs", True)
    assert 0.5 < outcome.reached / shared().original.macs <= 0.6
    assert done.plan.prune is not None or done.plan.remove
    assert not done.plan.quantize
    other = open_version(tmp_path / "out.onnx", data=DATA)
    assert other.original.macs == outcome.reached


def test_products_that_nothing_would_remove_are_refused() -> None:
    work = open_version(shared().model, data="random:1")
    with pytest.raises(InputError, match="--max-macs needs a search"):
        compress_version(work, Goals(max_macs=Amount(0.6, True)), "w8")


def test_the_metric_of_the_user_decides_on_all_data() -> None:
    work = shared()
    asked: list[float] = []

    def brightness(run) -> float:
        (value,) = run(work.job.data.fit.first()).values()
        asked.append(float(value[:, 0].mean()))
        return asked[-1]

    recipe = find("auto").model_copy(update={"method": "rtn"})
    section = recipe.search_in.model_copy(update={"measure": "metric"})
    recipe = recipe.model_copy(update={"search_in": section})
    control = SearchControl(effort="low")
    with pytest.raises(InputError, match="compares by a metric"):
        joint(work, goals(0.1), recipe, control)
    job = dataclasses.replace(work.job, metric=Metric("brightness", brightness))
    judged = Version(work.model, job, Reference(work.model, work.name, job))
    done = joint(judged, goals(0.1), recipe, control)
    assert done.search is not None
    assert done.search.measure == "metric"
    assert done.search.best <= done.search.start
    drops = [judged.job.metric.drop(judged.original.metric, value) for value in asked]
    assert min(abs(drop - done.search.best) for drop in drops) < 1e-4
    assert done.search.best < done.search.start


def test_same_seed_same_plan_however_many_workers() -> None:
    assert searched(0.1, processes=2)[1] == found_alone()


def test_a_cluster_finds_the_same_plan_though_a_worker_dies(monkeypatch) -> None:
    distributed = pytest.importorskip("distributed", reason="needs lwqc[cluster]")
    with distributed.LocalCluster(
        n_workers=3, threads_per_worker=1, dashboard_address=None, processes=True
    ) as cluster:
        victim = cluster.workers[0].process.process.pid
        add, calls = SearchLog.add, []

        def killing(self, key, stage, scores):
            add(self, key, stage, scores)
            calls.append(len(scores))
            if len(calls) == 4:
                os.kill(victim, signal.SIGKILL)

        monkeypatch.setattr(SearchLog, "add", killing)
        plan = searched(0.1, cluster=cluster.scheduler_address)[1]
    assert len(calls) > 4
    monkeypatch.setattr(SearchLog, "add", add)
    assert plan == found_alone()


def test_a_killed_search_resumes_to_the_same_plan(tmp_path, monkeypatch) -> None:
    path = tmp_path / "out.search"
    add = SearchLog.add

    def killed(self, key, stage, scores):
        add(self, key, stage, scores)
        if self.known > 25:
            raise MemoryError

    monkeypatch.setattr(SearchLog, "add", killed)
    with pytest.raises(MemoryError):
        searched(0.1, log=path)
    monkeypatch.setattr(SearchLog, "add", add)
    known = SearchLog(path, resume=True).known
    assert known > 25
    new = []
    monkeypatch.setattr(SearchLog, "add", lambda *a: (new.append(len(a[3])), add(*a)))
    resumed = searched(0.1, log=path, resume=True)[1]
    assert sum(new) > 0
    assert not path.exists()
    monkeypatch.setattr(SearchLog, "add", add)
    assert resumed == found_alone()


def test_resuming_another_search_is_refused(tmp_path) -> None:
    path = tmp_path / "out.search"
    SearchLog(path).must_equal("model", "another")
    with pytest.raises(InputError, match="another model"):
        searched(0.1, log=path, resume=True)


def test_ctrl_c_and_time_limits_end_with_the_best_so_far(monkeypatch) -> None:
    done, _ = searched(0.1, time_limit_s=1e-9)
    assert done.search is not None
    assert done.search.generations == 0
    evolve = whole_search.evolve

    def interrupted(*args, seen, **options):
        def stop_soon(generation):
            seen(generation)
            if generation.number == 0:
                raise KeyboardInterrupt

        return evolve(*args, seen=stop_soon, **options)

    monkeypatch.setattr(whole_search, "evolve", interrupted)
    done, plan = searched(0.1)
    assert "interrupted" in done.search.notes[0]
    assert plan.quantize


def test_a_budget_out_of_reach_gives_the_strongest_and_says_so(tmp_path) -> None:
    done, _ = searched(0.001)
    assert done.search is not None
    assert "no candidate" in done.search.notes[0]
    report = done.save(tmp_path / "out.onnx")
    assert not report.met


@pytest.mark.parametrize("predicted", [0.05, 0.14])  # of 0.15 ms of each site
def test_a_time_budget_takes_8_bit_activations_and_removes_no_more(monkeypatch, predicted) -> None:
    """Timings are given, so that the test does not depend on the machine.

    However little 8 bits are predicted to save, they are measured before anything is removed.
    """
    monkeypatch.setattr(max_latency, "reference_ms", lambda work, log: 1.0)
    monkeypatch.setattr(max_latency, "time_share", lambda work, model: 0.55)

    def times(found, log):
        stored = [
            tuple(predicted if e is not None else 0.15 for e in s.entries)
            if s.item is not None
            else (0.0,)
            for s in found.space.stored
        ]
        nothing = [(0.0,) for _ in stored]
        return Times(stored, nothing, [0.0] * len(found.space.written))

    monkeypatch.setattr(max_latency, "measured_times", times)
    wanted = Goals(max_latency=Amount(0.6, True))
    done = joint(shared(), wanted, find("auto"), SearchControl(effort="low"))
    assert {e.activation for e in done.plan.quantize.values()} & {"static", "dynamic"}
    assert done.search is not None
    assert done.search.items["width"][0] == 0


def test_auto_searches_for_budgets_on_given_data_only() -> None:
    auto, work = find("auto"), shared()
    assert searches(work, goals(0.3), auto)
    assert not searches(work, Goals(), auto)
    assert not searches(opened(data=None), goals(0.3), auto)
    assert not searches(work, goals(0.3), find("knapsack"))
    with pytest.raises(InputError, match="needs a budget"):
        joint(work, Goals(), find("evopress-joint"), SearchControl())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"effort": "huge"}, "effort huge"),
        ({"time_limit_s": 0.0}, "time-limit 0"),
        ({"time_limit_s": math.nan}, "time-limit nan"),
        ({"processes": 0}, "workers 0"),
    ],
)
def test_bad_control_is_refused(wrong, message) -> None:
    with pytest.raises(InputError, match=message):
        SearchControl(**wrong)


def test_a_row_of_models_from_one_search(tmp_path) -> None:
    nearest = find("auto").model_copy(update={"method": "rtn"})
    control = SearchControl(effort="low")
    models = list(pareto(shared(), goals(0.08), nearest, control, 3))
    reports = [m.save(tmp_path / f"{i}.onnx") for i, m in enumerate(models)]
    sizes = [r.output_bytes / r.source_bytes for r in reports]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] <= 0.08
    assert all(r.met for r in reports)
    with pytest.raises(InputError, match="at least 2"):
        next(pareto(shared(), goals(0.08), nearest, control, 1))


def test_average_bits_are_those_of_the_sites(tmp_path) -> None:
    nearest = find("auto").model_copy(update={"method": "rtn"})
    wanted = Goals(avg_bits=5.0)
    done = compress_version(shared(), wanted, nearest, SearchControl(effort="low"))
    report = done.save(tmp_path / "out.onnx")
    assert report.met
    assert 4.5 < report.average_bits <= 5


def test_scores_that_say_no_errors_choose_widths_alone() -> None:
    SearchRecipe(score="cfsp", kinds=("width",), start="angles")
    SearchRecipe(score="cfsp", kinds=("width",), errors="measured")
    for section in ({"kinds": ("format", "width"), "errors": "measured"}, {"kinds": ("width",)}):
        with pytest.raises(ValueError, match="the score cfsp says no errors"):
            SearchRecipe.model_validate({"score": "cfsp", **section})


def test_a_trajectory_adds_what_changes_behind_a_level() -> None:
    found = space(frozenset({"width"}))
    trajectory = Trajectory(found, lambda candidates, stage: [0.0] * len(candidates))
    top = found.space.top
    narrow = [(*top[:i], 0, *top[i + 1 :]) for i in range(len(top))]
    errors = trajectory([top, *narrow])
    assert errors[0] < 1e-9
    assert min(errors[1:]) > 1e-6
    assert len(trajectory.features) > 1
    # The outputs count a power of ten, a tenth of what the features do at least.
    weighed = Trajectory(found, lambda candidates, stage: [1.0] * len(candidates))([top, *narrow])
    added = np.subtract(weighed, errors)
    assert np.ptp(added) < 1e-6
    assert np.log10(added[0]) == pytest.approx(round(np.log10(added[0])))
