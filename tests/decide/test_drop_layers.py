"""Which branches go, on trained models: order, price, errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from rich.console import Console

from lwqc.cli.report.inspection import print_inspection
from lwqc.compile.losses import judged_drop
from lwqc.compile.steps.removed_branches import remove_planned
from lwqc.decide.compress import open_version
from lwqc.decide.drop_layers import DropOptions, choose_branches
from lwqc.decide.explain.inspection import inspect_model
from lwqc.errors import InputError
from lwqc.graph.branch_kinds import branch_tree
from lwqc.graph.cost import total
from lwqc.model import io
from lwqc.plans.plan import Plan, RemovedBranch, Source
from lwqc.runtime.session import Session
from lwqc.runtime.stats.output_divergence import OutputDivergence
from models import glyphs
from tests.build import model, normal

MODELS = Path(__file__).parents[2] / "models"


def opened(name: str = "glyph_vit", **options):
    feeds = [{"image": next(iter(glyphs.calibration()))["image"][:24]}]
    return open_version(MODELS / f"{name}.onnx", data=feeds, **options)


def chosen(work, **options):
    return choose_branches(work, DropOptions(**options))


def test_ablation_is_no_worse_than_similarity_and_that_than_random() -> None:
    work, count = opened(), 5
    curves = {
        score: [s.divergence for s in chosen(work, count=count, score=score).curve]
        for score in ("ablation", "ablation-once", "similarity")
    }
    random = [
        [s.divergence for s in chosen(work, count=count, score="random", seed=seed).curve]
        for seed in range(3)
    ]
    assert curves["ablation"][-1] <= curves["similarity"][-1] <= np.mean(random, 0)[-1]
    assert curves["ablation"][0] == curves["ablation-once"][0] == min(c[0] for c in curves.values())
    assert sum(curves["ablation"]) <= sum(curves["similarity"]) <= np.mean(random, 0).sum()


@pytest.mark.parametrize("score", ["similarity", "lim", "angular", "norm-ratio", "void"])
def test_curves_are_those_of_the_removed_model(score) -> None:
    work = opened()
    found = chosen(work, count=2, kind="mlp", score=score, measure="kl")
    assert [r.kind for r in found.plan.remove] == ["mlp", "mlp"]
    assert found.units == 6
    small, done = remove_planned(work.model, found.plan.remove)
    assert done.branches == tuple(r.name for r in found.plan.remove)
    (feeds,) = work.job.data.fit
    expected = OutputDivergence(work.original.session(feeds)["logits"], "kl")
    assert found.curve[-1].divergence == pytest.approx(
        expected(Session(small)(feeds)["logits"]), rel=1e-3
    )
    scores = [s.score for s in found.curve]
    assert scores == sorted(scores)


def test_shares_blocks_and_ends() -> None:
    work = opened()
    tree = branch_tree(work.model.graph)
    half = chosen(work, share=0.5, kind="block", keep_first=1, keep_last=1)
    assert len(half.curve) == 3
    assert half.units == 6
    removed = {r.name for r in half.plan.remove}
    assert len(removed) == 6
    ends = {b.name for b in (*tree.blocks[0], *tree.blocks[-1])}
    assert not removed & ends
    greedy = chosen(work, count=1, kind="attention", score="ablation", protect=0.9)
    attention = [b.name for b in tree.branches if b.kind == "attention"]
    assert greedy.plan.remove[0].name == attention[-1]


def test_a_limit_ends_the_curve() -> None:
    work = opened()
    free = chosen(work, count=4)
    limit = free.curve[1].divergence
    assert chosen(work, count=4, max_divergence=limit).curve == free.curve[:2]


def test_the_metric_decides() -> None:
    feeds = next(iter(glyphs.calibration()))

    def margin(run) -> float:
        ordered = np.sort(run(feeds)["logits"], -1)
        return float((ordered[:, -1] - ordered[:, -2]).mean())

    work = opened("glyph_resnet", metric=margin)
    found = chosen(work, count=1, score="metric")
    losses = {}
    for branch in branch_tree(work.model.graph).branches:
        small, _ = remove_planned(work.model, [RemovedBranch(name=branch.name)])
        losses[branch.name] = judged_drop(work, Session(small))
    assert found.plan.remove[0].name == min(losses, key=losses.__getitem__)
    assert found.curve[0].score == pytest.approx(min(losses.values()), abs=1e-6)


def test_plans_hold_branches_and_give_the_same_bytes(tmp_path) -> None:
    work = opened()
    plan = chosen(work, count=2, keep_signature=True).plan
    plan.save(tmp_path / "plan.json")
    loaded = Plan.load(tmp_path / "plan.json")
    assert loaded == plan
    before = ir.to_proto(work.model).SerializeToString()
    first, second = (remove_planned(work.model, p.remove)[0] for p in (plan, loaded))
    assert io.to_bytes(first) == io.to_bytes(second)
    assert ir.to_proto(work.model).SerializeToString() == before
    assert Plan(source=Source()).remove == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 13}, r"13 branches to remove; there are 12 \(6 attention, 6 mlp branches in 6"),
        ({"count": 7, "kind": "mlp"}, "7 mlp branches to remove; there are 6"),
        ({"count": 5, "kind": "block", "keep_last": 2}, "there are 6, of which 2 are to stay"),
        ({"count": 1, "kind": "convolution"}, "has no convolution branch; it has 6 attention, 6"),
        ({}, "either a count or a share"),
        ({"count": 1, "share": 0.5}, "either a count or a share"),
        ({"share": 1.5}, "above 0 and at most 1"),
        ({"count": 0}, "at least one"),
        ({"count": 1, "score": "metric"}, "needs a metric"),
        ({"count": 1, "score": "magic"}, "score magic: expected one of similarity"),
        ({"count": 1, "protect": 0.4}, "measure again after each removal"),
        ({"count": 1, "keep_first": -1}, "must not be negative"),
    ],
)
def test_errors_say_what_is_there(options, message) -> None:
    with pytest.raises(InputError, match=message):
        chosen(opened(), **options)


def test_models_without_branches() -> None:
    plain = model([("MatMul", ["x", "w"], "y", {})], {"w": normal(4, 4)}, {"x": ["n", 4]}, ["y"])
    with pytest.raises(InputError, match="has no residual branch that could be removed"):
        chosen(open_version(plain), count=1)
    with pytest.raises(InputError, match="has no residual branch"):
        chosen(opened("glyph_shufflenet"), count=1)


def test_inspection_shows_the_tree(capsys) -> None:
    found = inspect_model(io.load(MODELS / "glyph_resnet.onnx"))
    console = Console(width=200)
    print_inspection(found, console, sites=False, cost=False, branches=True)
    shown = capsys.readouterr().out
    assert "4 residual branches that can be removed" in shown
    assert "add_55: convolution, 18,496 parameters, 17.1% of the MACs" in shown
    assert "a projection shortcut" in shown
    data = found.to_dict()
    assert [b["block"] for b in data["branches"]] == [0, 1, 2, 3]
    assert data["branches"][0]["parameters"] == 18496
    assert [r["name"] for r in data["not_removable"]] == ["add_137", "add_219"]


def test_costs_are_what_the_removal_saves() -> None:
    work = opened()
    found = inspect_model(work.model)
    before = total(found.costs)
    for name in list(found.branch_costs)[:3]:
        small, _ = remove_planned(work.model, [RemovedBranch(name=name)])
        after = total(inspect_model(small).costs)
        cost = found.branch_costs[name]
        assert before.parameters - after.parameters == cost.parameters
        assert (before.macs or 0) - (after.macs or 0) == cost.macs
