"""How many tokens go where: by measured loss, as steps of a plan, for a share or a latency."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import lwqc
from lwqc.cli.report.console import Console
from lwqc.cli.report.terminal import print_report
from lwqc.decide.allocators.token_counts import allocate
from lwqc.decide.compress import open_version
from lwqc.decide.fewer_tokens import Job, better, may_shorten
from lwqc.decide.strategy import decide
from lwqc.decide.tokens import ShareOutOfReachError, choose_tokens
from lwqc.errors import InputError
from lwqc.plans.goals import Goals
from lwqc.plans.recipe import TokenRecipe, find
from lwqc.runtime.session import Session
from lwqc.runtime.stats.output_divergence import OutputDivergence
from tests.tiny_vit import PATCHES, WIDTH, TinyVit, dense, pooled

FEEDS = [{"x": np.random.default_rng(0).standard_normal((16, PATCHES, WIDTH), dtype=np.float32)}]


def saved(folder: Path, vit: TinyVit) -> Path:
    path = folder / "vit.onnx"
    onnx.save(vit.build(), path)
    return path


def test_levels_fall_where_they_cost_least() -> None:
    shares, weights = np.array([1.0, 0.5, 0.25]), np.ones(3)
    errors = np.array([[0, 9, 9.5], [0, 1, 6], [0, 1, 2]])
    assert allocate(errors, shares, weights, 3.0) == [0, 0, 0]
    assert allocate(errors, shares, weights, 2.5) == [0, 0, 1]
    assert allocate(errors, shares, weights, 2.0) == [0, 1, 1]
    assert allocate(errors, shares, weights, 1.75) == [0, 1, 2]
    assert allocate(errors, shares, weights, 0.5) is None
    errors[2, :2] = np.inf  # a layer that has to leave out some
    assert allocate(errors, shares, weights, 3.0) == [0, 0, 2]


def test_the_prices_are_those_of_the_model_that_is_made(tmp_path: Path) -> None:
    path = saved(tmp_path, TinyVit())
    done = lwqc.drop_layers(path, tokens=0.4, data=FEEDS)
    report = done.save(tmp_path / "short.onnx").tokens
    assert report is not None
    assert report.saved == pytest.approx(0.4, abs=0.15)
    assert report.steps[-1][:3] == ("layer1", 1, 9)  # nothing reads the others
    before, after = Session(lwqc.load(path)), Session(lwqc.load(tmp_path / "short.onnx"))
    ((reference,), (value,)) = (tuple(s(FEEDS[0]).values()) for s in (before, after))
    divergence = OutputDivergence(reference, report.measure)(value)
    assert report.steps[-1][3] == pytest.approx(divergence, rel=1e-3)


def test_those_that_go_become_one_where_that_is_asked_for_or_loses_less(tmp_path: Path) -> None:
    work = open_version(saved(tmp_path, TinyVit()), data=FEEDS)
    apart, merged, either = (
        choose_tokens(work, TokenRecipe(merge=merge), 0.4) for merge in (False, True, None)
    )
    assert {entry.keep: entry.merge for entry in merged.tokens} == {
        entry.keep: entry.keep > 1 for entry in apart.tokens
    }
    assert not any(entry.merge for entry in apart.tokens)
    assert merged.divergences[-1] != apart.divergences[-1]
    better = merged.divergences[-1] < 0.9 * apart.divergences[-1]
    assert either.tokens == (merged if better else apart).tokens


def test_only_what_nothing_reads_goes_for_a_small_share(tmp_path: Path) -> None:
    work = open_version(saved(tmp_path, TinyVit()), data=FEEDS)
    found = choose_tokens(work, TokenRecipe(), 0.01)
    assert [(e.branch, e.keep, e.of) for e in found.tokens] == [("layer1", 1, 9)]
    assert found.divergences[0] < 1e-6


@pytest.mark.parametrize("recipe", ["w8a8-fused", "llm-drop-mlp"])
def test_a_plan_with_anything_else_gives_the_same_bytes(tmp_path: Path, recipe: str) -> None:
    path = saved(tmp_path, TinyVit(opset=23))
    make = lwqc.drop_layers if recipe == "llm-drop-mlp" else lwqc.compress
    done = make(path, recipe=recipe, tokens=0.5, data=FEEDS)
    assert done.plan.tokens
    assert done.plan.quantize or done.plan.remove
    done.save(tmp_path / "a.onnx", plan=tmp_path / "plan.json")
    plan = lwqc.Plan.load(tmp_path / "plan.json")
    lwqc.apply(path, plan, data=FEEDS).save(tmp_path / "b.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_without_data_it_says_so(tmp_path: Path) -> None:
    done = lwqc.drop_layers(saved(tmp_path, TinyVit(always=0, read=pooled)), recipe="zero-tprune")
    assert "measured on random inputs" in " ".join(done.plan.notes)
    assert {e.importance for e in done.plan.tokens} == {"rank"}


def test_the_report_lists_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = lwqc.drop_layers(saved(tmp_path, TinyVit()), tokens=0.3, data=FEEDS)
    print_report(done.save(tmp_path / "short.onnx"), Console())
    shown = capsys.readouterr().out
    assert "tokens that attention reads most stay" in shown
    assert "layer1" in shown


@pytest.mark.parametrize(
    ("vit", "options", "why"),
    [
        (TinyVit(read=dense), {"tokens": 0.3}, "no tokens can go: layer0: graph output"),
        (TinyVit(), {"tokens": 0.95}, "leaving out tokens takes .* at most"),
        (TinyVit(), {"tokens": 1.5}, "expected a share above 0 and below 1"),
    ],
)
def test_what_cannot_be_is_one_line(
    tmp_path: Path, vit: TinyVit, options: dict[str, object], why: str
) -> None:
    with pytest.raises(InputError, match=why):
        lwqc.drop_layers(saved(tmp_path, vit), data=FEEDS, **options)


def test_all_tokens_stay_where_the_latency_is_kept_with_them(tmp_path: Path) -> None:
    path = saved(tmp_path, TinyVit())
    done = lwqc.compress(path, recipe="evit-w8", max_latency="1000s", data=FEEDS)
    assert not done.plan.tokens
    assert done.plan.quantize
    assert done.plan.budgets == {"max_latency": "1000000"}


def test_a_latency_that_no_number_of_tokens_keeps_gives_the_fastest_and_says_so(
    tmp_path: Path,
) -> None:
    path = saved(tmp_path, TinyVit(layers=4))
    most = TokenRecipe(share=0.7)
    with pytest.raises(ShareOutOfReachError, match=r"leaving out tokens takes \d+% at most"):
        choose_tokens(open_version(path, data=FEEDS), most, 0.95)
    done = lwqc.compress(path, recipe="evit-w8", data=FEEDS, max_latency="1%")
    report = done.save(tmp_path / "short.onnx")
    (outcome,) = (o for o in report.outcomes if o.name == "latency")
    assert not outcome.met


def test_of_a_search_and_fewer_tokens_the_one_is_taken_that_loses_less(tmp_path: Path) -> None:
    work = open_version(saved(tmp_path, TinyVit()), data=FEEDS)
    goals = Goals(max_latency="1000s")
    assert may_shorten(work, goals)
    assert not may_shorten(work, Goals(max_latency="1000s", max_size=0.5))

    def job(share: float) -> Job:
        recipe = find("evit").model_copy(update={"tokens": TokenRecipe(share=share)})
        return lambda version: decide(version, goals, recipe)

    for search, shorter in ((0.6, 0.01), (0.01, 0.6)):
        chosen = better(work, job(search), job(shorter), goals).make()
        assert [e.keep for e in chosen.decisions.tokens] == [1]
        assert "8 bits and fewer tokens" in chosen.decisions.notes[-1]


def test_a_model_that_has_fewer_tokens_already_keeps_one_at_least(tmp_path: Path) -> None:
    onnx.save(TinyVit(always=0, read=pooled, layers=3).build(), tmp_path / "vit.onnx")
    first = lwqc.drop_layers(tmp_path / "vit.onnx", tokens=0.6, data=FEEDS)
    first.save(tmp_path / "short.onnx")
    work = open_version(tmp_path / "short.onnx", data=FEEDS)
    tokens = choose_tokens(work, TokenRecipe(), 0.2).tokens
    assert all(entry.keep >= 1 for entry in tokens)


@pytest.mark.parametrize(
    ("tokens", "reason"),
    [(4, "has 4 tokens, layer0 has 8"), (8, "its tokens are not those of layer0")],
)
def test_another_tower_stays_with_the_reason(tokens: int, reason: str) -> None:
    vit = TinyVit(always=0)
    small, ends = vit.small, []
    for tower, count in enumerate((8, tokens)):
        x = small.linear(small.input(("batch", 2), count, WIDTH, name=f"x{tower}"), WIDTH, WIDTH)
        vit.tokens = count
        x = vit.layer(vit.layer(x, 2 * tower), 2 * tower + 1)
        ends.append(small.op("ReduceMean", x, small.ints(1)))
    model = small.build(small.op("Add", *ends, name="y"))
    feeds = [dict(small.feeds)]
    found = choose_tokens(open_version(ir.from_proto(model), data=feeds), TokenRecipe(), 0.3)
    assert {e.branch for e in found.tokens} <= {"layer0", "layer1"}
    assert found.left == dict.fromkeys(("layer2", "layer3"), reason)
