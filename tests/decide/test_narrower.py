"""Channels that go where formats leave room within an allowed loss, judged on other inputs."""

from __future__ import annotations

import numpy as np
import pytest

import lwqc
from lwqc.compile.job_data import JobData
from lwqc.compile.losses import judged_drop
from lwqc.decide import narrower as module
from lwqc.decide import planning
from lwqc.decide.compress import open_version
from lwqc.model.limits import LimitError
from lwqc.plans.recipe import find
from tests.build import Row, model, normal

WIDE, NEEDED = 96, 16


def two_layers(first):
    rows: list[Row] = [
        ("MatMul", ["x", "w0"], "a", {}),
        ("Relu", ["a"], "b", {}),
        ("MatMul", ["b", "w1"], "y", {}),
    ]
    weights = {"w0": first, "w1": normal(WIDE, 64, seed=1, scale=0.1)}
    return model(rows, weights, {"x": ["batch", 64]}, ["y"])


def rows_of(count, seed=0):
    return [{"x": normal(8, 64, seed=seed + i)} for i in range(count)]


@pytest.fixture(scope="module")
def repeated():
    """A network whose channels are a few, again and again."""
    return two_layers(np.tile(normal(64, NEEDED, seed=0, scale=0.1), WIDE // NEEDED))


@pytest.fixture(scope="module")
def independent():
    """A network whose channels each say something else."""
    return two_layers(normal(64, WIDE, seed=0, scale=0.1))


def test_repeated_channels_go_and_a_plan_replays_it(repeated, tmp_path, slow_low_bits):
    done = lwqc.compress(repeated, data=rows_of(20), max_drop=0.01)
    report = done.save(tmp_path / "small.onnx")
    before, after = report.pruning.macs
    assert after <= 0.35 * before
    assert any("held back lost" in note for note in report.notes)
    unseen = lwqc.verify(repeated, tmp_path / "small.onnx", data=rows_of(5, seed=100))
    assert unseen["y"].drop <= 0.01
    again = lwqc.apply(repeated, done.plan, data=rows_of(20)).save(tmp_path / "again.onnx")
    assert again.pruning.macs == report.pruning.macs
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "small.onnx").read_bytes()


def test_what_only_the_fitted_inputs_do_not_miss_stays(independent):
    """Fitted to fewer inputs than channels, layers make up for what goes on those inputs first."""
    work = open_version(independent, data=rows_of(20))
    plan = planning.unchanged(work)
    assert module.narrower(work, plan, 0.01, "mse") is None
    (why,) = work.job.unusable
    assert why.startswith(
        "fewer channels: on inputs that are held back the fewest that can go lose"
    )
    choice = module.Choice(work, module.PruneOptions(0.3, score="obs", compensate="refit"))
    prune = choice.of(0.3).plan.prune
    assert prune is not None
    small = module._without(work, prune)
    others = open_version(independent, data=rows_of(10, seed=100))
    session = work.job.load(small.model)
    assert judged_drop(others, session) > 1.5 * judged_drop(work, session)


def test_nothing_goes_without_enough_real_data_or_where_nobody_says_what_may_be_lost(repeated):
    plan = planning.unchanged(open_version(repeated, data=rows_of(2)))
    fixed = model([("MatMul", ["x", "w"], "y", {})], {"w": normal(64, 64)}, {"x": [8, 64]}, ["y"])
    few, made_up = open_version(fixed, data=rows_of(19)), open_version(repeated, data="random:20")
    assert module.narrower(few, planning.unchanged(few), 0.01, "mse") is None
    assert module.narrower(made_up, plan, 0.01, "mse") is None
    assert lwqc.compress(repeated, data=rows_of(20)).plan.prune is None


def test_data_that_memory_does_not_hold_is_a_note(repeated, monkeypatch):
    work = open_version(repeated, data=rows_of(20))
    monkeypatch.setattr(JobData, "apart", beyond_memory)
    assert module.narrower(work, planning.unchanged(work), 0.01, "mse") is None
    assert any("memory" in why for why in work.job.unusable)


def beyond_memory(self):
    raise LimitError("keeping the data takes more memory than is allowed")


def test_only_what_is_better_is_taken(repeated, monkeypatch):
    work = open_version(repeated, data=rows_of(20))
    base, plan, recipe = module.Base(work), planning.unchanged(work), find("auto")
    with monkeypatch.context() as patched:
        patched.setattr(planning, "proven", None)  # nothing is fitted to all data for it
        same, _ = module.narrowed(base, plan, 0.01, recipe, better=lambda *_: False)
    assert same == base
    assert list(work.job.unusable) == ["fewer channels: what they save is too little"]
    narrow, found = module.narrowed(base, plan, 0.01, recipe, better=module.smaller)
    assert narrow.prune is not None
    assert any("held back" in note for note in found.notes)


def test_the_metric_of_the_original_is_taken_once(repeated):
    asked = []

    def total(run):
        asked.append(run)
        return float(run(rows_of(1)[0])["y"].sum())

    work = open_version(repeated, data=rows_of(20), metric=total)
    apart = module._held_back(work)
    assert apart is not None
    assert apart.original.metric == work.original.metric
    assert len(asked) == 1


def test_what_judges_is_fitted_by_nothing(repeated):
    apart = open_version(repeated, data=rows_of(20)).job.data.apart()
    assert apart is not None
    fitted = [feeds["x"] for feeds in apart.fit]
    assert (len(fitted), len(apart.judge)) == (16, 4)
    assert not any(np.array_equal(a, b["x"]) for a in fitted for b in apart.judge)
    assert apart.judge_is_all
