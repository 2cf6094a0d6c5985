"""Pruning as a user meets it, on trained and on small made-up models."""

import importlib
import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import lwqc
import lwqc.cli.demo
from lwqc.compile.prunable import Prunable
from lwqc.decide.channels import decide
from lwqc.decide.compress import open_version
from lwqc.decide.prune_options import PruneOptions
from lwqc.errors import InputError
from lwqc.model import io
from lwqc.runtime.session import Session
from tests.build import model, normal

DIGITS = Path(lwqc.cli.demo.__file__).parent / "digits.onnx"
DATA = "lwqc.cli.demo.digits:calibration"
METRIC = "lwqc.cli.demo.digits:accuracy"


def perceptron(**options):
    """Two hidden layers; the first has two copies of each channel."""
    first = normal(16, 12, scale=0.3)
    return model(
        [
            ("MatMul", ["x", "w1"], "a", {}),
            ("Add", ["a", "b1"], "b", {}),
            ("Relu", ["b"], "c", {}),
            ("MatMul", ["c", "w2"], "d", {}),
            ("Add", ["d", "b2"], "e", {}),
            ("Relu", ["e"], "f", {}),
            ("MatMul", ["f", "w3"], "y", {}),
        ],
        {
            "w1": np.concatenate([first, first], 1),
            "b1": np.tile(normal(12, seed=1, scale=0.1), 2),
            "w2": normal(24, 40, seed=2, scale=0.3),
            "b2": normal(40, seed=3, scale=0.1),
            "w3": normal(40, 6, seed=4, scale=0.3),
        },
        {"x": ["batch", 16]},
        ["y"],
        **options,
    )


def feeds(count=4, rows=64):
    return [{"x": normal(rows, 16, seed=i)} for i in range(count)]


def shapes(built):
    return {n: tuple(v.shape) for n, v in built.graph.initializers.items()}


def test_a_trained_model_loses_a_third_of_its_macs_and_little_accuracy(tmp_path):
    report = lwqc.prune(DIGITS, ratio=0.3, data=DATA, metric=METRIC).save(tmp_path / "out.onnx")
    assert report.met
    assert report.pruning.macs[1] <= 0.7 * report.pruning.macs[0]
    assert report.metric_after >= report.metric_before - 0.02
    onnx.checker.check_model(str(tmp_path / "out.onnx"), full_check=True)
    before, after = io.load(DIGITS), io.load(tmp_path / "out.onnx")
    for one, other in zip(
        (*before.graph.inputs, *before.graph.outputs),
        (*after.graph.inputs, *after.graph.outputs),
        strict=True,
    ):
        assert (one.name, str(one.shape)) == (other.name, str(other.shape))
    assert before.opset_imports == after.opset_imports


def test_redundant_channels_go_without_loss():
    """Half of the first hidden layer repeats the other half: the refit makes up for it."""
    done = lwqc.prune(perceptron(), ratio=0.0, groups={"w1:1": 0.5}, data=feeds())
    assert shapes(done.model)["w1"] == (16, 12)
    found = lwqc.verify(perceptron(), done.model, data=feeds())["y"]
    assert found.cosine_mean > 0.9999  # the ridge of the refit costs the rest
    plain = lwqc.prune(perceptron(), recipe="spa-l2", ratio=0.0, groups={"w1:1": 0.5}, data=feeds())
    assert lwqc.verify(perceptron(), plain.model, data=feeds())["y"].cosine_mean < 0.99


@pytest.fixture(autouse=True)
def untimed(monkeypatch):
    """Widths are as asked: on a busy machine a smaller model may be timed as slower."""
    module = importlib.import_module("lwqc.decide.structural")
    monkeypatch.setattr(module, "_slower", lambda done: False)


@pytest.mark.parametrize("recipe", ["spa-l1", "spa-l2", "spa-lamp", "fpgm", "wanda", "obspa"])
def test_every_recipe_meets_its_budget(recipe, tmp_path):
    report = lwqc.prune(perceptron(), recipe=recipe, ratio=0.4, data=feeds()).save(
        tmp_path / "o.onnx"
    )
    assert report.met
    assert 0.5 < report.pruning.macs[1] / report.pruning.macs[0] <= 0.6


def test_without_data_the_recipe_needs_none():
    done = lwqc.prune(perceptron(), ratio=0.3)
    assert done.plan.recipe == "obspa-datafree"
    assert done.plan.prune.calibration == "random"


def test_ratio_by_parameters_and_by_channels():
    done = lwqc.prune(perceptron(), ratio=0.5, by="parameters", recipe="spa-l2", data=feeds())
    sizes = sum(np.prod(s) for s in shapes(done.model).values())
    assert sizes <= 0.5 * sum(np.prod(s) for s in shapes(perceptron()).values())
    done = lwqc.prune(perceptron(), ratio=0.25, by="channels", recipe="spa-l2", data=feeds())
    assert (shapes(done.model)["w1"], shapes(done.model)["w2"]) == ((16, 18), (18, 30))


def test_local_scope_takes_the_same_share_of_every_group():
    work = open_version(perceptron(), data=feeds())
    keep = decide(work, PruneOptions(ratio=0.4, scope="local")).keep
    shares = [mask.mean() for mask in keep.values()]
    assert len(shares) == 2
    assert max(shares) - min(shares) < 0.06


def test_rounding_and_minimum_widths():
    work = open_version(perceptron(), data=feeds())
    keep = decide(work, PruneOptions(ratio=0.5, round_to=8)).keep
    assert keep
    assert all(mask.sum() % 8 == 0 for mask in keep.values())
    keep = decide(work, PruneOptions(ratio=0.9, min_channels=10)).keep
    assert all(mask.sum() >= 10 for mask in keep.values())


def test_a_budget_out_of_reach_is_reported(run, tmp_path):
    source, out, data = tmp_path / "m.onnx", tmp_path / "o.onnx", tmp_path / "d.npz"
    io.save(perceptron(), source)
    np.savez(data, x=feeds()[0]["x"])
    code, _, err = run(
        "prune", source, "-o", out, "--ratio", 0.9, "--min-channels", 20, "--data", data
    )
    assert code == 3
    assert out.exists()
    assert "MACs" in err


def test_a_plan_replays_to_the_same_bytes_and_lists_every_slice(run, tmp_path):
    source, plan, data = tmp_path / "m.onnx", tmp_path / "p.json", tmp_path / "d.npz"
    io.save(perceptron(), source)
    np.savez(data, x=feeds()[0]["x"])
    first, second = tmp_path / "a.onnx", tmp_path / "b.onnx"
    code, *_ = run("prune", source, "-o", first, "--ratio", 0.3, "--data", data, "--plan-out", plan)
    assert code == 0
    units = json.loads(plan.read_text())["prune"]["units"]
    assert {u["group"] for u in units} <= {"w1:1", "w2:1"}
    gone = {i for u in units if u["group"] == "w1:1" for i in [u["index"]]}
    for unit in (u for u in units if u["group"] == "w1:1"):
        places = {(s["initializer"], s["axis"]): s["indices"] for s in unit["slices"]}
        assert places == {k: [unit["index"]] for k in (("w1", 1), ("b1", 0), ("w2", 0))}
    kept = [i for i in range(24) if i not in gone]
    built = io.load(first)
    original = io.load(source).graph.initializers["w1"].const_value.numpy()
    assert np.array_equal(built.graph.initializers["w1"].const_value.numpy(), original[:, kept])
    code, *_ = run("apply", source, plan, "-o", second, "--data", data)
    assert code == 0
    assert first.read_bytes() == second.read_bytes()


def test_a_plan_whose_slices_do_not_fit_is_refused():
    done = lwqc.prune(perceptron(), ratio=0.3, data=feeds())
    document = json.loads(done.plan.model_dump_json())
    document["prune"]["units"][0]["slices"][0]["indices"] = [3, 4]
    with pytest.raises(lwqc.InputError, match="do not fit"):
        lwqc.apply(perceptron(), lwqc.Plan.model_validate(document), data=feeds())


def test_pruned_then_quantized():
    small = lwqc.prune(perceptron(), ratio=0.3, data=feeds()).model
    both = lwqc.quantize(small, bits=8, data=feeds())
    assert lwqc.verify(small, both.model, data=feeds())["y"].cosine_min > 0.999


def test_pruning_a_quantized_graph_slices_its_scales():
    codes = np.random.default_rng(0).integers(-128, 127, (16, 24)).astype(np.int8)
    built = model(
        [
            ("DequantizeLinear", ["q1", "s1", "z1"], "w1", {"axis": 1}),
            ("MatMul", ["x", "w1"], "a", {}),
            ("Relu", ["a"], "b", {}),
            ("MatMul", ["b", "w2"], "y", {}),
        ],
        {
            "q1": codes,
            "s1": np.abs(normal(24, scale=0.01)) + 0.001,
            "z1": np.zeros(24, np.int8),
            "w2": normal(24, 6, seed=1, scale=0.3),
        },
        {"x": ["batch", 16]},
        ["y"],
    )
    done = lwqc.prune(built, recipe="spa-l2", ratio=0.5, data=feeds())
    found = shapes(done.model)
    kept = found["w2"][0]
    assert kept == 12
    assert found["q1"] == (16, kept)
    assert found["s1"] == found["z1"] == (kept,)
    assert done.model.graph.initializers["q1"].dtype == ir.DataType.INT8


def test_a_slower_result_gets_rounder_widths(monkeypatch):
    module = importlib.import_module("lwqc.decide.structural")
    asked = []

    def slower(done):
        asked.append(done)
        return len(asked) < 2

    def rounder_is(milliseconds):
        monkeypatch.setattr(module, "_slower", slower)
        monkeypatch.setattr(module, "run_ms", lambda work, *models: [1.0, milliseconds])
        asked.clear()
        return lwqc.prune(perceptron(), recipe="spa-l2", ratio=0.3, data=feeds()).pruned.notes

    assert "slower" in rounder_is(0.5)[0]
    assert len(asked) == 2
    assert rounder_is(0.99) == ()  # not worth another ratio


def test_channels_that_do_not_matter_to_a_loss_go_first():
    """Taylor: only output 0 is in the loss, so what feeds it alone stays."""
    built = model(
        [
            ("MatMul", ["x", "w1"], "a", {}),
            ("Tanh", ["a"], "b", {}),
            ("MatMul", ["b", "w2"], "y", {}),
        ],
        {"w1": normal(16, 8, scale=0.3), "w2": np.repeat(np.eye(2, dtype=np.float32), 4, 0)},
        {"x": ["batch", 16]},
        ["y"],
    )

    def loss(outputs, feeds):
        return float(np.square(outputs["y"][:, 0] - 1).mean())

    options = {"recipe": "spa-l2", "ratio": 0.5, "data": feeds()}
    done = lwqc.prune(built, score="taylor", loss=loss, **options)
    assert [u.index for u in done.plan.prune.units] == [4, 5, 6, 7]
    done = lwqc.prune(built, score="ablation", **options)
    assert len(done.plan.prune.units) == 4
    with pytest.raises(lwqc.InputError, match="--loss"):
        lwqc.prune(built, score="taylor", **options)


def test_an_output_may_get_narrower_when_allowed():
    fixed = Prunable(perceptron())
    assert {g.name for g in fixed.groups} == {"w1:1", "w2:1"}
    free = Prunable(perceptron(), ("y",))
    assert {g.name for g in free.groups} == {"w1:1", "w2:1", "w3:1"}


def refused(result, *words):
    code, _, err = result
    assert code == 2, err
    assert len(err.strip().splitlines()) == 1, err
    for word in words:
        assert word in err, err


def test_bad_input_is_refused_in_one_line(run, tmp_path):
    source, out = tmp_path / "m.onnx", tmp_path / "o.onnx"
    io.save(perceptron(), source)
    call = ("prune", source, "-o", out)
    refused(run(*call, "--ratio", 1.5), "ratio", "1.5")
    refused(run(*call, "--ratio", -0.1), "ratio", "-0.1")
    refused(run(*call, "--ratio", "nan"), "ratio")
    refused(run(*call, "--group", "nothing:0=0.5"), "nothing:0", "inspect --groups")
    refused(run(*call, "--group", "w1:1=2"), "w1:1", "2")
    refused(run(*call, "--group", "w1:1"), "GROUP=share")
    refused(run(*call, "--score", "best"), "score", "best", "obs")
    refused(run(*call, "--by", "weight"), "by", "macs")
    refused(run(*call, "--recipe", "w8"), "w8", "does not prune")
    refused(run(*call, "--recipe", "nope"), "nope")
    refused(run(*call, "--round-to", 0), "round-to")
    refused(run(*call, "--resizable-output", "z"), "z", "no such output")
    data = tmp_path / "d.npz"
    np.savez(data, x=normal(4, 7))
    refused(run(*call, "--data", data), "x", "7")
    np.savez(data, other=normal(4, 16))
    refused(run(*call, "--data", data), "other")
    assert not out.exists()


def test_everything_frozen_is_refused_with_the_reasons(run, tmp_path):
    source, out = tmp_path / "m.onnx", tmp_path / "o.onnx"
    built = model([("MatMul", ["x", "w"], "y", {})], {"w": normal(64, 32)}, {"x": ["n", 64]}, ["y"])
    io.save(built, source)
    refused(
        run("prune", source, "-o", out), "nothing can be pruned", "graph input x", "graph output y"
    )


def test_nothing_to_save_at_the_sizes_of_the_data():
    built = perceptron()
    nothing = [{built.graph.inputs[0].name: normal(4, 16)[:0]}]
    with pytest.raises(InputError, match="nothing can be saved: it has no macs at these sizes"):
        lwqc.prune(built, ratio=0.3, data=nothing)


def test_weights_in_bodies_are_the_reason(run, tmp_path):
    info = onnx.helper.make_tensor_value_info
    body = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["r"], name="inner")],
        "body",
        [],
        [info("r", 1, ["n", 32])],
        [onnx.numpy_helper.from_array(normal(64, 32), "w")],
    )
    choice = onnx.helper.make_node(
        "If", ["flag"], ["y"], name="choice", then_branch=body, else_branch=body
    )
    inputs = [info("x", 1, ["n", 64]), info("flag", 9, [])]
    graph = onnx.helper.make_graph([choice], "g", inputs, [info("y", 1, ["n", 32])])
    source, out = tmp_path / "m.onnx", tmp_path / "o.onnx"
    imports = [onnx.helper.make_opsetid("", 20)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=imports, ir_version=9), source)
    reason = "bodies of If choice hold weights, and are not pruned"
    refused(run("prune", source, "-o", out), "nothing can be pruned", reason)


def test_inspect_lists_groups_and_reasons(run, tmp_path):
    source = tmp_path / "m.onnx"
    io.save(perceptron(), source)
    code, out, _ = run("inspect", source, "--groups")
    assert code == 0
    assert "w1:1" in out
    assert "graph output y" in out
    code, out, _ = run("inspect", source, "--groups", "--json")
    found = json.loads(out)
    assert [(g["name"], g["size"]) for g in found["groups"]] == [("w1:1", 24), ("w2:1", 40)]
    assert {f["reason"] for f in found["frozen"]} == {"graph input x", "graph output y"}


def test_groups_are_a_networkx_graph():
    graph = Prunable(perceptron()).groups.to_networkx()
    assert set(graph[("group", "w1:1")]) == {("tensor", t) for t in ("w1", "b1", "w2")}
    assert graph.edges[("group", "w1:1"), ("tensor", "w2")]["axes"] == [0]


def test_the_pruned_model_runs_on_any_batch():
    done = lwqc.prune(perceptron(), ratio=0.3, data=feeds())
    for rows in (1, 3):
        assert Session(done.model)({"x": normal(rows, 16)})["y"].shape == (rows, 6)
