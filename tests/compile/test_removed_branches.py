"""What takes the place of removed branches, and the job from the command line."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest

import lwqc
from lwqc.compile.decisions import DropDecision
from lwqc.compile.stamped import stamped
from lwqc.compile.steps.removed_branches import without_branches
from lwqc.decide.compress import open_version
from lwqc.errors import InputError
from lwqc.model import io
from lwqc.plans.plan import Plan, RemovedBranch, Source
from lwqc.plans.recipe import named
from lwqc.runtime.session import Session
from lwqc.runtime.stats.output_divergence import OutputDivergence
from models import glyphs
from tests.build import model, normal

MODELS = Path(__file__).parents[2] / "models"
VIT = MODELS / "glyph_vit.onnx"
METRIC = "tests.few_samples:glyph_accuracy"
SMALL = "tests.compile.test_removed_branches:small"
WIDTH, HIDDEN = 6, 10


def stack(second: str, *, bias: bool = True):
    """x + W2·relu(W1·x) + b, then one more branch: a constant, or a linear one.

    Inputs are positive and W1 begins with the identity, so hidden units tell x.
    """
    rows = [
        ("MatMul", ["x", "w1"], "h", {}),
        ("Relu", ["h"], "a", {}),
        ("MatMul", ["a", "w2"], "m", {}),
        ("Add", ["m", "b2"], "f1", {}) if bias else ("Identity", ["m"], "f1", {}),
        ("Add", ["x", "f1"], "y1", {}),
    ]
    weight = "v" if second == "linear" else "zero"
    rows += [("MatMul", ["y1", weight], "z", {}), ("Add", ["z", "c"], "f2", {})]
    rows += [("Add", ["y1", "f2"], "y2", {}), ("MatMul", ["y2", "head"], "out", {})]
    weights = {
        "w1": np.hstack([np.eye(WIDTH, dtype=np.float32), normal(WIDTH, HIDDEN - WIDTH, seed=1)]),
        "w2": normal(HIDDEN, WIDTH, seed=2),
        "b2": normal(WIDTH, seed=3),
        "v": normal(WIDTH, WIDTH, seed=4),
        "c": normal(WIDTH, seed=5),
        "zero": np.zeros((WIDTH, WIDTH), np.float32),
        "head": normal(WIDTH, 3, seed=6),
    }
    used = {name for _, names, _, _ in rows for name in names}
    return model(
        rows, {n: w for n, w in weights.items() if n in used}, {"x": ["n", WIDTH]}, ["out"]
    )


FEEDS = [{"x": np.abs(normal(400, WIDTH, seed=seed))} for seed in (7, 8)]


def removed(built, name: str, how: str):
    work = open_version(built, data=FEEDS)
    return without_branches(work, [RemovedBranch(name=name, compensate=how)])


def error(built, small) -> float:
    a, b = (Session(m)(FEEDS[0])["out"] for m in (built, small))
    return float(np.abs(a - b).max() / np.abs(a).max())


def test_a_constant_branch_becomes_its_mean_in_the_bias_before() -> None:
    built = stack("constant")
    found = removed(built, "y2", "mean")
    assert found.compensated == {"y2": "mean"}
    assert error(built, found.work.model) < 1e-5
    assert [n.op_type for n in found.work.model.graph] == [
        "MatMul", "Relu", "MatMul", "Add", "Add", "MatMul",
    ]  # fmt: skip
    assert error(built, removed(built, "y2", "none").work.model) > 0.05


def test_without_a_bias_the_constant_stays_an_addition() -> None:
    built = stack("constant", bias=False)
    found = removed(built, "y2", "mean")
    assert error(built, found.work.model) < 1e-5
    assert [n.op_type for n in found.work.model.graph].count("Add") == 2


def test_the_layer_before_takes_over_what_it_can_predict(monkeypatch) -> None:
    monkeypatch.setattr("lwqc.compile.steps.removed_branches._DAMP", 1e-6)
    built = stack("linear")
    found = removed(built, "y2", "linear")
    assert found.compensated["y2"] == "linear, by n_m"
    assert error(built, found.work.model) < 5e-3
    assert error(built, removed(built, "y2", "mean").work.model) > 0.05


def test_where_no_layer_is_before_the_mean_stays_with_the_reason() -> None:
    found = removed(stack("constant"), "y1", "linear")
    assert found.compensated["y1"].startswith("mean; the stream comes from an input")


def test_refit_is_closer_on_a_trained_model(tmp_path) -> None:
    feeds = small()
    kl = {}
    for how in ("none", "mean", "linear"):
        done = lwqc.drop_layers(VIT, branches=3, recipe="llm-drop-mlp", compensate=how, data=feeds)
        report = done.save(tmp_path / f"{how}.onnx")
        kl[how] = report.divergence["logits"].kl
        assert report.removal is not None
        assert {row.compensation.split(",")[0] for row in report.removal.branches} == {
            {"none": ""}.get(how, how)
        }
    assert kl["linear"] < 0.7 * kl["none"]
    assert kl["mean"] < kl["none"]


def test_plans_with_compensation_replay_and_need_the_data(tmp_path) -> None:
    feeds = small()
    done = lwqc.drop_layers(VIT, branches=2, data=feeds, score="similarity")
    again = lwqc.apply(VIT, done.plan, data=feeds)
    assert io.to_bytes(done.model) == io.to_bytes(again.model)
    with pytest.raises(InputError, match="looks at it again; give the same --data"):
        lwqc.apply(VIT, done.plan)


def test_an_unknown_branch_in_a_plan() -> None:
    work = open_version(VIT)
    plan = stamped(work, Plan(source=Source(), remove=(RemovedBranch(name="nothing"),)))
    with pytest.raises(InputError, match="nothing: is no branch"):
        lwqc.apply(VIT, plan)


def test_removed_sites_cannot_be_quantized() -> None:
    work = open_version(VIT)
    done = lwqc.drop_layers(VIT, branches=1, recipe="llm-drop-mlp", data="random:1")
    gone = sorted(set(work.sites) - set(done.sites))
    assert len(gone) == 2
    entry = lwqc.plan(VIT, recipe="w8").quantize[gone[0]]
    plan = stamped(work, done.plan.model_copy(update={"quantize": {gone[0]: entry}}))
    with pytest.raises(InputError, match="names sites that the model does not have"):
        lwqc.apply(VIT, plan, data="random:1")


def test_removal_and_quantization_in_one_plan(tmp_path) -> None:
    feeds = small()
    dropped = lwqc.drop_layers(VIT, branches=2, recipe="llm-drop-joint", data=feeds)
    entries = lwqc.plan(VIT, recipe="w8", data=feeds).quantize
    kept = {name: entry for name, entry in entries.items() if name in dropped.sites}
    plan = dropped.plan.model_copy(update={"quantize": kept})
    report = lwqc.apply(VIT, plan, data=feeds).save(tmp_path / "both.onnx")
    assert report.output_bytes < 0.4 * report.source_bytes
    assert len(report.sites) < len(lwqc.inspect(VIT).sites.sites)
    assert sum(row.format != "float" for row in report.sites) == len(kept) < len(entries)
    onnx.checker.check_model(str(tmp_path / "both.onnx"), full_check=True)


@pytest.mark.parametrize("name", sorted(n for n, r in named().items() if r.drop is not None))
def test_every_recipe_runs(name, tmp_path) -> None:
    feeds = small()

    def spread(run) -> float:
        return float(np.ptp(run(feeds[0])["logits"]))

    metric = {"metric": spread} if name == "axformer" else {}
    done = lwqc.compress(VIT, recipe=name, data=feeds, **metric)
    report = done.save(tmp_path / "small.onnx")
    assert report.removal is not None or not done.decisions.remove
    assert report.removal is None or 1 <= len(report.removal.branches) <= 12


def test_accept_goes_from_blocks_to_branches_and_keeps_the_limit() -> None:
    feeds = small()
    options = {"data": feeds, "recipe": "axformer", "measure": "kl", "share": 1.0}
    tight = lwqc.drop_layers(VIT, max_divergence=0.02, **options)
    loose = lwqc.drop_layers(VIT, max_divergence=0.3, **options)
    assert len(tight.plan.remove) < len(loose.plan.remove)
    assert isinstance(loose.decision, DropDecision)
    assert len(loose.decision.curve[0].branches) == 2
    assert max(step.divergence for step in loose.decision.curve) <= 0.3
    nothing = lwqc.drop_layers(VIT, max_divergence=1e-9, **options)
    assert nothing.plan.remove == ()
    assert isinstance(nothing.decision, DropDecision)
    assert "nothing could go" in nothing.decision.notes[0]


def test_accept_goes_on_with_heads_and_hidden_units_within_the_limit(tmp_path) -> None:
    feeds = [{"image": small()[0]["image"][:6]}]
    options = {"data": feeds, "recipe": "axformer", "measure": "kl", "max_divergence": 0.02}
    whole = lwqc.drop_layers(VIT, share=1.0, **options)  # so many branches, and nothing finer
    done = lwqc.drop_layers(VIT, **options)
    assert done.plan.remove == whole.plan.remove
    assert whole.plan.prune is None
    assert done.plan.prune is not None
    gone = Counter(unit.group for unit in done.plan.prune.units)
    sizes = {g.name: g.size for g in lwqc.inspect(VIT).groups}
    assert all(count < sizes[name] for name, count in gone.items())
    assert {sizes[name] for name in gone} >= {4, 256}  # heads, hidden units
    assert all(count % 32 == 0 for name, count in gone.items() if sizes[name] == 256)
    report = done.save(tmp_path / "small.onnx")
    assert report.pruning is not None
    assert report.pruning.macs[1] < report.pruning.macs[0]
    before, after = (Session(m) for m in (VIT, done.model))
    losses = [OutputDivergence(before(f)["logits"], "kl")(after(f)["logits"]) for f in feeds]
    assert 0.01 < np.mean(losses) < 0.02 * 1.001


def test_the_command_reports_what_it_removed(run, tmp_path) -> None:
    out, plan = tmp_path / "small.onnx", tmp_path / "plan.json"
    code, shown, _ = run(
        "drop", VIT, "-o", out, "--branches", "25%", "--kind", "mlp", "--score", "similarity",
        "--data", SMALL, "--metric", METRIC, "--plan-out", plan, "--json",
    )  # fmt: skip
    assert code == 0
    report = json.loads(shown)
    assert len(report["removal"]["branches"]) == 2
    assert {row["kind"] for row in report["removal"]["branches"]} == {"mlp"}
    assert all(r["compensation"].startswith("linear") for r in report["removal"]["branches"])
    assert report["removal"]["there_were"] == 12
    assert report["output_bytes"] < 0.9 * report["source_bytes"]
    assert report["metric_after"] > 0.8
    onnx.checker.check_model(str(out), full_check=True)
    code, shown, _ = run("drop", VIT, "-o", out, "--branches", "1", "--data", "random:2")
    assert code == 0
    assert "1 of 12 residual branches removed" in shown
    assert "in its place" in shown


def test_a_cache_is_named_when_it_goes(run, tmp_path) -> None:
    past = MODELS / "stdlib_lm_past.onnx"
    arguments = ("--branches", "2", "--kind", "attention", "--score", "similarity")
    code, shown, _ = run(
        "drop", past, "-o", tmp_path / "a.onnx", *arguments, "--compensate", "none",
        "--data", "random:1", "--shape", "batch=1,sequence=4,past=3",
    )  # fmt: skip
    assert code == 0, shown
    assert "inputs that are gone: past_k" in shown
    assert "outputs that are gone" in shown
    code, shown, _ = run(
        "drop", past, "-o", tmp_path / "b.onnx", *arguments, "--keep-signature",
        "--data", "random:1", "--shape", "batch=1,sequence=4,past=3", "--recipe", "llm-drop-joint",
    )  # fmt: skip
    assert code == 0, shown
    assert "outputs that repeat an input" in shown
    kept = io.load(tmp_path / "b.onnx").graph
    assert len(kept.inputs) == len(io.load(past).graph.inputs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--branches", "13"], "13 branches to remove; there are 12 (6 attention, 6 mlp"),
        (["--branches", "many"], "--branches many: expected a count or a share such as 25%"),
        (["--branches", "0%"], "a share of 0 to remove"),
        (["--branches", "2", "--kind", "convolution"], "has no convolution branch; it has 6"),
        (["--branches", "2", "--score", "best"], "score best: expected one of similarity"),
        (["--branches", "2", "--recipe", "gptq"], "recipe gptq does not remove branches"),
        (["--branches", "2", "--score", "metric"], "the score metric needs a metric"),
        (["--branches", "1", "--compensate", "magic"], "compensate magic: expected one of none"),
        (["--branches", "1", "--compensate", "mean"], "looks at the data: give --data"),
        (["--score", "accept"], "needs a metric or a largest divergence"),
        (["--branches", "6", "--kind", "mlp", "--keep-first", "1"], "of which 1 are to stay"),
    ],
)
def test_bad_usage_says_what_is_there(run, tmp_path, arguments, message) -> None:
    code, _, shown = run("drop", VIT, "-o", tmp_path / "o.onnx", *arguments)
    assert code == 2
    assert message in shown
    assert len(shown.strip().splitlines()) == 1
    assert not (tmp_path / "o.onnx").exists()


def test_a_model_without_branches(run, tmp_path) -> None:
    out = tmp_path / "o.onnx"
    code, _, shown = run("drop", MODELS / "glyph_shufflenet.onnx", "-o", out, "--branches", "1")
    assert code == 2
    assert "has no residual branch that could be removed" in shown


def test_parallel_branches_from_the_command(run, tmp_path) -> None:
    out = tmp_path / "o.onnx"
    code, shown, _ = run(
        "drop", VIT, "-o", out, "--recipe", "shallow", "--branches", "2", "--data", "random:2",
        "--json",
    )  # fmt: skip
    assert code == 0
    report = json.loads(shown)["parallel"]
    assert len(report["tried"]) == 2
    assert report["there_were"] == 11
    before, after = report["latency_ms"]
    assert bool(report["pairs"]) == (after * 1.05 < before)
    done = lwqc.drop_layers(VIT, branches=2, recipe="shallow", faster=False, data="random:2")
    assert len(done.plan.parallel) == 2
    again = lwqc.apply(VIT, done.plan)
    assert io.to_bytes(done.model) == io.to_bytes(again.model)
    rows = tuple((p.first, p.second, None) for p in done.plan.parallel)
    assert again.save(out).parallel.pairs == rows
    code, _, shown = run("drop", VIT, "-o", out, "--recipe", "shallow", "--score", "lim")
    assert code == 2
    assert "score: making branches parallel has no such option" in shown


def test_narrow_streams_from_the_command(run, tmp_path) -> None:
    out = tmp_path / "o.onnx"
    arguments = ("prune", VIT, "-o", out, "--recipe", "slicegpt")
    code, shown, _ = run(*arguments, "--ratio", "0.2", "--data", SMALL, "--json")
    assert code == 0
    report = json.loads(shown)
    assert report["slicing"]["streams"] == [["stem.6.weight:0", 72]]
    assert report["output_bytes"] < 0.9 * report["source_bytes"]
    assert report["divergence"]["logits"]["cosine_mean"] > 0.95
    for wrong, message in (
        (["--data", SMALL, "--score", "obs"], "score: narrowing streams has no such option"),
        (["--data", SMALL, "--ratio", "1.5"], "expected a share above 0 and below 1"),
    ):
        code, _, shown = run(*arguments, *wrong)
        assert code == 2
        assert message in shown


def convnext(time: int | str = "t"):
    """Two branches on a [batch, channels, time] stream, as in Vocos: Conv, Transpose, MLP, back."""
    rows, weights, x = [], {}, "x"
    for i in (0, 1):
        names = {k: f"{k}{i}" for k in ("c", "p", "h", "a", "m", "q", "y", "k", "w", "v", "b")}
        rows += [
            ("Conv", [x, names["k"]], names["c"], {"group": 8, "pads": [1, 1]}),
            ("Transpose", [names["c"]], names["p"], {"perm": [0, 2, 1]}),
            ("MatMul", [names["p"], names["w"]], names["h"], {}),
            ("Relu", [names["h"]], names["a"], {}),
            ("MatMul", [names["a"], names["v"]], names["m"], {}),
            ("Transpose", [names["m"]], names["q"], {"perm": [0, 2, 1]}),
            ("Add", [x, names["q"]], names["y"], {}),
        ]
        weights |= {
            names["k"]: normal(8, 1, 3, seed=i),
            names["w"]: normal(8, 16, seed=i + 2),
            names["v"]: normal(16, 8, seed=i + 4),
        }
        x = names["y"]
    rows.append(("ReduceMean", [x], "out", {"keepdims": 0}))
    return model(rows, weights, {"x": ["n", 8, time]}, ["y1"])


@pytest.mark.parametrize("time", ["t", 20])
def test_features_before_time(time) -> None:
    """[batch, channels, time]: what takes a branch's place fits any length."""
    built = convnext(time)
    data = [{"x": normal(4, 8, 20)}]
    work = open_version(built, data=data)
    found = without_branches(work, [RemovedBranch(name="y1", compensate="mean")])
    assert found.compensated == {"y1": "mean"}
    (constant,) = [
        v for v in found.work.model.graph.initializers.values() if "constant" in (v.name or "")
    ]
    assert tuple(constant.shape) == (8, 1)
    length = 31 if time == "t" else 20
    assert Session(found.work.model)({"x": normal(4, 8, length)})["y1"].shape == (4, 8, length)


def hidden_state(second: np.ndarray):
    """Two branches; the stream between them is a graph output. second: weight of the last one."""
    rows = [
        ("MatMul", ["x", "a"], "f", {}),
        ("Add", ["x", "f"], "x2", {}),
        ("MatMul", ["x2", "b"], "g", {}),
        ("Add", ["x2", "g"], "x3", {}),
        ("Relu", ["x3"], "out", {}),
    ]
    return model(rows, {"a": normal(4, 4), "b": second}, {"x": ["n", 4]}, ["out", "x2"])


def test_outputs_keep_their_names() -> None:
    data = [{"x": normal(40, 4)}]
    zero = np.zeros((4, 4), np.float32)
    for built, name, outputs in (
        (hidden_state(zero), "x3", ["out", "x2"]),
        (hidden_state(zero), "x2", ["out", "x2"]),
        (single(zero), "y", ["y"]),
    ):
        work = open_version(built, data=data)
        small = without_branches(work, [RemovedBranch(name=name, compensate="linear")]).work.model
        assert [v.name for v in small.graph.outputs] == outputs
        onnx.checker.check_model(onnx.load_from_string(io.to_bytes(small)), full_check=True)
        assert list(Session(small)(data[0])) == outputs


def single(weight: np.ndarray):
    """One branch from the input to the output."""
    rows = [("MatMul", ["x", "w"], "f", {}), ("Add", ["x", "f"], "y", {})]
    return model(rows, {"w": weight}, {"x": ["n", 4]}, ["y"])


def test_parallel_branches_get_nothing_in_their_place() -> None:
    rows = [
        ("MatMul", ["x", "a"], "f", {}),
        ("MatMul", ["x", "b"], "g", {}),
        ("Add", ["f", "g"], "s", {}),
        ("Add", ["x", "s"], "y", {}),
        ("MatMul", ["y", "c"], "out", {}),
    ]
    built = model(
        rows, {n: normal(4, 4, seed=i) for i, n in enumerate("abc")}, {"x": ["n", 4]}, ["out"]
    )
    names = [b["name"] for b in lwqc.inspect(built).to_dict()["branches"]]
    assert len(names) == 2
    work = open_version(built, data=[{"x": normal(40, 4)}])
    for chosen in (names, names[:1]):
        plan = [RemovedBranch(name=n, compensate="mean" if n in chosen else "none") for n in names]
        found = without_branches(work, plan)
        assert set(found.compensated) == set(chosen)
        assert all(why.startswith("nothing; several") for why in found.compensated.values())
        onnx.checker.check_model(
            onnx.load_from_string(io.to_bytes(found.work.model)), full_check=True
        )


def test_a_mean_that_does_harm_is_not_kept() -> None:
    """A few enormous outputs make a mean that fits no token."""
    rare = normal(4, 4, seed=3)
    work = open_version(
        model(
            [
                ("Mul", ["x", "x"], "sq", {}),
                ("Mul", ["sq", "x"], "cube", {}),
                ("MatMul", ["cube", "w"], "f", {}),
                ("Add", ["x", "f"], "s", {}),
                ("LayerNormalization", ["s", "g"], "y", {"axis": -1}),
            ],
            {"w": np.abs(rare) * 0.1, "g": np.ones(4, np.float32)},
            {"x": ["n", 4]},
            ["y"],
        ),
        data=[{"x": np.vstack([normal(99, 4), np.full((1, 4), 60, np.float32)])}],
    )
    found = without_branches(work, [RemovedBranch(name="s", compensate="mean")])
    assert found.compensated == {"s": "nothing; mean brings the outputs no closer"}


def test_nothing_removed_is_said(run, tmp_path) -> None:
    arguments = ("drop", VIT, "-o", tmp_path / "o.onnx", "--data", SMALL, "--branches", "2")
    code, shown, _ = run(*arguments, "--max-divergence", "1e-9", "--score", "similarity")
    assert code == 0
    assert "0 of 12 residual branches removed" in shown
    assert "0 of 2 went: the next would exceed a divergence of 1e-09" in shown
    code, shown, _ = run(
        *arguments, "--max-divergence", "0.01", "--score", "accept", "--kind", "block"
    )
    assert code == 0
    assert "0 of 12 residual" in shown or "of 2 went: the others cost too much" in shown
    code, _, shown = run(*arguments, "--max-divergence", "nan")
    assert code == 2
    assert "'nan' is not a finite number" in shown
    code, _, shown = run("plan", VIT, "-o", tmp_path / "p.json", "--recipe", "llm-drop-mlp")
    assert code == 0
    assert "2 branches removed" in " ".join(shown.split())
    with pytest.raises(InputError, match="branches few: expected a count or a share such as 25%"):
        lwqc.drop_layers(VIT, branches="few")
    with pytest.raises(InputError, match="leave out count and share"):
        lwqc.drop_layers(VIT, branches=1, count=2)


def small() -> list[dict[str, np.ndarray]]:
    """A few images."""
    return [{"image": next(iter(glyphs.calibration()))["image"][:32]}]


def test_diagnostics_tell_what_skipping_does(run) -> None:
    code, shown, _ = run("inspect", VIT, "--branches", "--data", SMALL, "--json")
    assert code == 0
    rows = json.loads(shown)["branches"]
    names = [row["name"] for row in rows]
    for i, row in enumerate(rows):
        assert -1 <= row["cosine"] <= 1
        assert 0 <= row["void_rate"] <= 1
        assert row["skip_changes_outputs"] > 0
        later = [row["skip_changes"][name] for name in names]
        assert later[: i + 1] == [0.0] * (i + 1)  # what comes before does not feel it
        assert min(later[i + 1 :], default=1) > 0
    done = lwqc.drop_layers(VIT, branches=1, score="random", compensate="none", data=small())
    (gone,) = done.plan.remove
    (feeds,) = small()
    a, b = (softmax(Session(m)(feeds)["logits"]) for m in (VIT, done.model))
    found = rows[names.index(gone.name)]["skip_changes_outputs"]
    assert np.linalg.norm(a - b, axis=-1).mean() == pytest.approx(found, rel=1e-3)
    code, _, shown = run("inspect", VIT, "--data", SMALL)
    assert code == 2
    assert "give --branches too" in shown


def softmax(logits):
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)
