"""Plans say what they depend on, and are refused where that is something else."""

from __future__ import annotations

import json

import numpy as np
import onnx_ir as ir
import pytest

import lwqc
from lwqc.compile import locks
from lwqc.model import io
from lwqc.plans.plan import Plan
from lwqc.runtime.data import open_data
from tests.build import model, normal
from tests.doc_pages import BLOCK, DOCS


def feeds(count=3, seed=0):
    return [{"x": normal(4, 96, seed=seed + i)} for i in range(count)]


def net(seed=0):
    return model(
        [
            ("MatMul", ["x", "w1"], "h", {}),
            ("Relu", ["h"], "r", {}),
            ("MatMul", ["r", "w2"], "y", {}),
        ],
        {"w1": normal(96, 128, seed=seed, scale=0.1), "w2": normal(128, 64, seed=1, scale=0.1)},
        {"x": ["batch", 96]},
        ["y"],
    )


@pytest.fixture
def files(tmp_path):
    """A model, a plan that was made for it, and its data."""
    io.save(net(), tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", x=normal(32, 96))
    return tmp_path


@pytest.fixture
def made(files, run):
    made = files / "p.json"
    arguments = ["--data", files / "d.npz", "--recipe", "w8a8-static"]
    assert run("plan", files / "m.onnx", "-o", made, *arguments)[0] == 0
    return made


def replay(run, files, made, *arguments, model="m.onnx", data="d.npz"):
    out = files / "out.onnx"
    given = ["--data", files / data] if data else []
    code, _, err = run("apply", files / model, made, "-o", out, "--no-verify", *given, *arguments)
    assert out.exists() == (code == 0)
    out.unlink(missing_ok=True)
    return code, err


def test_a_plan_says_what_it_depends_on(files, made):
    plan = Plan.load(made)
    assert plan.version == 2
    assert plan.source.name == "m.onnx"
    assert plan.tools == locks.tool_versions()
    assert (plan.data.name, plan.data.feeds) == (str(files / "d.npz"), 4)
    assert plan.data.shapes == {"x": (8, 96)}


def test_it_is_replayed_on_the_same(files, made, run):
    assert replay(run, files, made)[0] == 0
    assert replay(run, files, made, data=None)[0] == 0  # executing it looks at no data


@pytest.mark.parametrize(
    ("array", "told"),
    [
        (normal(32, 96, seed=1), "other values, or the same in another order"),
        (normal(32, 96)[::-1].copy(), "other values, or the same in another order"),
        (normal(16, 96), "(2 feeds, x [8, 96]"),
    ],
    ids=["values", "order", "count"],
)
def test_other_data_is_refused_in_one_line(files, made, run, array, told):
    np.savez(files / "e.npz", x=array)
    code, err = replay(run, files, made, data="e.npz")
    assert code == 2
    assert len(err.strip().splitlines()) == 1
    for words in ("the plan was made on", "d.npz (4 feeds", "not on", "e.npz", told):
        assert words in err
    code, err = replay(run, files, made, "--allow-drift", data="e.npz")
    assert code == 0, err


def test_so_is_another_model(files, made, run):
    io.save(net(seed=7), files / "other.onnx")
    code, err = replay(run, files, made, model="other.onnx")
    assert code == 2
    assert "the plan is for m.onnx" in err
    assert "not for other.onnx" in err
    assert replay(run, files, made, "--allow-drift", model="other.onnx")[0] == 0


@pytest.mark.parametrize("tool", ["lwqc", "onnx", "onnxruntime"])
def test_so_are_other_versions(files, made, run, tool):
    plan = json.loads(made.read_text())
    plan["tools"][tool] = "0.0.1"
    made.write_text(json.dumps(plan))
    code, err = replay(run, files, made)
    assert code == 2
    assert f"the plan was made with {tool} 0.0.1, not with {locks.tool_versions()[tool]}" in err
    assert "--allow-drift" in err
    assert replay(run, files, made, "--allow-drift")[0] == 0


def test_every_difference_is_told(files, made, run):
    plan = json.loads(made.read_text())
    plan["tools"]["onnx"] = "0.0.1"
    made.write_text(json.dumps(plan))
    io.save(net(seed=7), files / "other.onnx")
    np.savez(files / "e.npz", x=normal(8, 96))
    err = replay(run, files, made, model="other.onnx", data="e.npz")[1]
    assert all(words in err for words in ("the plan is for", "was made on", "onnx 0.0.1"))


def test_what_was_accepted_is_in_the_notes_and_in_the_new_plan():
    plan = lwqc.plan(net(), data=feeds(), recipe="w8a8-static")
    with pytest.raises(lwqc.InputError, match="other values"):
        lwqc.apply(net(), plan, data=feeds(seed=5))
    done = lwqc.apply(net(), plan, data=feeds(seed=5), allow_drift=True)
    (note,) = done.plan.notes
    assert note.startswith("replayed although the plan was made on data (3 feeds")
    assert done.plan.data != plan.data


def test_plans_of_version_1_load_and_are_locked_to_their_model_alone(files, made, run):
    old = json.loads(made.read_text())
    for name in ("data", "tools", "budgets"):
        del old[name]
    made.write_text(json.dumps({**old, "version": 1}))
    assert Plan.load(made).version == 2
    np.savez(files / "e.npz", x=normal(8, 96, seed=3))
    assert replay(run, files, made, data="e.npz")[0] == 0
    io.save(net(seed=7), files / "other.onnx")
    assert replay(run, files, made, model="other.onnx")[0] == 2


def test_a_plan_of_version_1_is_brought_to_version_2_as_the_page_says(files, made, monkeypatch):
    plan = json.loads(made.read_text())
    old = {k: v for k, v in plan.items() if k not in ("data", "tools", "budgets")}
    (files / "old.json").write_text(json.dumps({**old, "version": 1}))
    (files / "m.onnx").rename(files / "model.onnx")
    (files / "d.npz").rename(files / "samples.npz")
    monkeypatch.chdir(files)
    page = (DOCS / "plans.md").read_text().partition("## Plans of version 1")[2]
    exec(dict(BLOCK.findall(page))["python"], {})
    new = Plan.load("plan.json")
    assert (new.version, new.tools, new.budgets) == (2, locks.tool_versions(), {})
    assert new.data.feeds == 4
    lwqc.apply("model.onnx", new, data="samples.npz").save("again.onnx", verify=False)
    assert (files / "again.onnx").read_bytes() == (files / "small.onnx").read_bytes()
    with pytest.raises(lwqc.InputError, match="the plan was made on"):
        lwqc.apply("model.onnx", new, data=feeds(seed=9))


def test_version_1_never_had_what_came_later(files, made):
    newer = json.loads(made.read_text())
    made.write_text(json.dumps({**newer, "version": 1}))
    with pytest.raises(lwqc.InputError, match="version"):
        Plan.load(made)


def test_statistics_on_random_inputs_need_inputs_of_the_same_shapes():
    plan = lwqc.plan(net(), data=feeds(), recipe="obspa-datafree")
    assert plan.prune.calibration == "random"
    assert lwqc.apply(net(), plan, data=feeds()).pruned is not None
    with pytest.raises(lwqc.InputError, match=r"on inputs x \[4, 96\], not x \[1, 96\]"):
        lwqc.apply(net(), plan)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (np.zeros((2, 3), np.float32), np.zeros((3, 2), np.float32)),
        (np.zeros(2, np.float32), np.zeros(2, np.int32)),
        (np.array(["a", "bc"], object), np.array(["ab", "c"], object)),
    ],
    ids=["shape", "type", "texts"],
)
def test_shapes_types_and_texts_count(one, other):
    def digest(array):
        dtype = ir.DataType.from_numpy(array.dtype) if array.dtype != object else None
        x = ir.Value(
            name="x",
            shape=ir.Shape(["a", "b"][: array.ndim]),
            type=ir.TensorType(dtype or ir.DataType.STRING),
        )
        graph = ir.Graph([x], [x], nodes=[], opset_imports={"": 17})
        opened = open_data([{"x": array}], ir.Model(graph, ir_version=9))
        return locks.data_source(opened).digest

    assert digest(one) == digest(one.copy())
    assert digest(one) != digest(other)
