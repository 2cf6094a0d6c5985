"""Which branches become parallel, on trained models: order, price, speed, errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from lwqc.compile.steps.make_parallel import parallel_planned
from lwqc.decide.compress import open_version
from lwqc.decide.parallel_layers import ParallelOptions, choose_parallel
from lwqc.errors import InputError
from lwqc.graph.adjacent import adjacent_pairs
from lwqc.graph.branch_kinds import branch_tree
from lwqc.model import io
from lwqc.plans.plan import ParallelPair, Plan
from lwqc.runtime.session import Session
from lwqc.runtime.stats.output_divergence import OutputDivergence
from models import glyphs
from tests.build import model, normal

MODELS = Path(__file__).parents[2] / "models"


def opened(name: str = "glyph_vit"):
    feeds = [{"image": next(iter(glyphs.calibration()))["image"][:24]}]
    return open_version(MODELS / f"{name}.onnx", data=feeds)


def chosen(work, **options):
    return choose_parallel(work, ParallelOptions(**{"faster": False} | options))


def divergence(work, pairs, measure="js") -> float:
    (feeds,) = work.job.data.fit
    merged = parallel_planned(work.model, [ParallelPair(first=a, second=b) for a, b in pairs])
    expected = OutputDivergence(work.original.session(feeds)["logits"], measure)
    return expected(Session(merged)(feeds)["logits"])


@pytest.mark.parametrize("search", ["greedy", "once"])
def test_curves_are_those_of_the_merged_model(search) -> None:
    work = opened()
    found = chosen(work, count=3, search=search, measure="kl")
    assert found.pairs == 11
    assert len(found.curve) == 3
    assert not found.note
    assert found.latency_ms is None
    pairs = [step.pair for step in found.curve]
    assert found.plan.parallel == tuple(ParallelPair(first=a, second=b) for a, b in pairs)
    for i, step in enumerate(found.curve):
        expected = divergence(work, pairs[: i + 1], "kl")
        assert step.divergence == pytest.approx(expected, rel=1e-3)


def test_greedy_takes_the_pair_that_costs_least() -> None:
    work = opened()
    pairs = adjacent_pairs(branch_tree(work.model.graph)).pairs
    first = chosen(work, count=1)
    costs = {pair: divergence(work, [pair]) for pair in pairs}
    assert first.curve[0].pair == min(costs, key=costs.__getitem__)
    greedy, once = (chosen(work, count=4, search=search) for search in ("greedy", "once"))
    assert greedy.curve[0] == once.curve[0] == first.curve[0]
    assert greedy.curve[-1].divergence <= once.curve[-1].divergence


def test_a_limit_ends_the_curve() -> None:
    work = opened()
    free = chosen(work, share=0.3)
    assert len(free.curve) == 3
    assert chosen(work, count=3, max_divergence=free.curve[1].divergence).curve == free.curve[:2]
    none = chosen(work, count=3, max_divergence=0.0)
    assert not none.plan.parallel
    assert none.note == "every pair diverges by more than 0"


@pytest.mark.parametrize(("after", "kept"), [(0.5, True), (1.0, False), (2.0, False)])
def test_what_is_not_faster_is_refused(monkeypatch, after, kept) -> None:
    def timed(work, *models):
        assert len(models) == 2
        return [1.0, after]

    monkeypatch.setattr("lwqc.decide.parallel_layers.run_ms", timed)
    found = chosen(opened(), count=1, faster=True)
    assert found.latency_ms == (1.0, after)
    assert bool(found.plan.parallel) is kept
    assert len(found.curve) == 1
    refused = f"1 parallel pairs are not faster: {after:.3f} ms, before 1.000 ms"
    assert found.note == ("" if kept else refused)


def test_plans_give_the_same_bytes_and_leave_the_model(tmp_path) -> None:
    work = opened()
    plan = chosen(work, count=2).plan
    plan.save(tmp_path / "plan.json")
    loaded = Plan.load(tmp_path / "plan.json")
    assert loaded == plan
    before = io.to_bytes(work.model)
    first, second = (parallel_planned(work.model, p.parallel) for p in (plan, loaded))
    assert io.to_bytes(first) == io.to_bytes(second)
    assert io.to_bytes(work.model) == before
    onnx.checker.check_model(io.to_bytes(first), full_check=True)


def test_kinds() -> None:
    found = chosen(opened("glyph_mobilenet"), count=1, kind="convolution")
    assert found.pairs == 1
    assert np.isfinite(found.curve[0].divergence)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 12}, "12 pairs of branches to make parallel; there are 11"),
        ({"count": 1, "kind": "mlp"}, "has no two mlp branches in a row; its adjacent pairs are 6"),
        ({}, "either a count or a share"),
        ({"count": 1, "share": 0.5}, "either a count or a share"),
        ({"share": 1.5}, "above 0, at most 1"),
        ({"count": 0}, "at least one"),
        ({"count": 1, "max_divergence": -1.0}, "must not be negative"),
        ({"count": 1, "kind": "magic"}, "kind magic: expected one of attention"),
        ({"count": 1, "search": "magic"}, "search magic: expected one of greedy, once"),
        ({"count": 1, "measure": "magic"}, "measure magic: expected one of js"),
    ],
)
def test_errors_say_what_is_there(options, message) -> None:
    with pytest.raises(InputError, match=message):
        chosen(opened(), **options)


def test_models_without_pairs() -> None:
    plain = model([("MatMul", ["x", "w"], "y", {})], {"w": normal(4, 4)}, {"x": ["n", 4]}, ["y"])
    with pytest.raises(InputError, match="has no residual branches that could be parallel"):
        chosen(open_version(plain), count=1)
    with pytest.raises(InputError, match="parallel; add_91: it reads the output of Relu, not that"):
        chosen(opened("glyph_resnet"), count=1)
