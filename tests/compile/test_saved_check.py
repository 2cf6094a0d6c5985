"""What a command leaves: the whole result, or exactly what was there before."""

from __future__ import annotations

import json
import os
import re

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import lwqc
from lwqc.backends.cpu import CpuTarget
from lwqc.compile import compressed
from lwqc.compile.saved_check import Expected, check_saved
from lwqc.errors import InputError, UnsoundResult
from lwqc.model import io
from lwqc.plans.plan import Plan
from lwqc.runtime import isolated
from lwqc.runtime.session import Session, SessionSettings, as_array
from tests.build import model, normal
from tests.short import short

DIES = "import os, sys; sys.stdin.buffer.read(1); os.abort()"
COMMANDS = {
    "quantize": ["quantize", "{m}", "-o", "{o}", "--plan-out", "{p}"],
    "external": ["quantize", "{m}", "-o", "{o}", "--external-data", "--plan-out", "{p}"],
    "compress": ["compress", "{m}", "-o", "{o}", "--plan-out", "{p}"],
    "clean": ["compress", "{m}", "-o", "{o}", "--no-quantize"],
    "prune": ["prune", "{m}", "-o", "{o}", "--plan-out", "{p}", "--recipe", "spa-l2"],
    "drop": ["drop", "{m}", "-o", "{o}", "--plan-out", "{p}", "--branches", "1"],
    "lower": ["lower", "{m}", "-o", "{o}", "--target", "tensorrt", "--plan-out", "{p}"],
    "apply": ["apply", "{m}", "{made}", "-o", "{o}"],
    "pareto": ["compress", "{m}", "-o", "{o}", "--pareto", "2", "--max-size", "0.5", "--data",
               "random:2", "--effort", "low", "--workers", "1"],
}  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A model with a residual branch, a plan for it, and an output with data that is there."""
    rows = [
        ("MatMul", ["x", "w0"], "a", {}),
        ("Relu", ["a"], "b", {}),
        ("MatMul", ["b", "w1"], "c", {}),
        ("Add", ["x", "c"], "d", {}),
        ("MatMul", ["d", "w2"], "y", {}),
    ]
    weights = {f"w{i}": normal(64, 64, seed=i, scale=0.1) for i in range(3)}
    built = model(rows, weights, {"x": ["batch", 64]}, ["y"])
    io.save(built, tmp_path / "m.onnx")
    done = lwqc.quantize(tmp_path / "m.onnx")
    done.plan.save(tmp_path / "made.json")
    io.save(built, tmp_path / "o.onnx", external_data=True)
    (tmp_path / "o.onnx").chmod(0o640)
    (tmp_path / "p.json").write_text("a plan of before")
    short(monkeypatch)
    return tmp_path


def arguments(name, folder, output="o.onnx", plan="p.json"):
    places = {"m": "m.onnx", "o": output, "p": plan, "made": "made.json"}
    return [a.format(**{k: folder / v for k, v in places.items()}) for a in COMMANDS[name]]


def content(folder):
    """Every file with its bytes and its permissions."""
    return {p.name: (p.read_bytes(), p.stat().st_mode) for p in folder.iterdir()}


def failing(monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(compressed, "divergences", fail)


# What fails leaves nothing


@pytest.mark.parametrize("name", COMMANDS)
def test_where_the_saved_file_kills_its_process_nothing_changes(
    name, folder, run, monkeypatch, tmp_path_factory
):
    script = tmp_path_factory.mktemp("child") / "child.py"
    script.write_text(DIES)
    dying = type("Dying", (isolated.Isolated,), {"script": script})()
    monkeypatch.setattr("lwqc.compile.saved_check.shared", lambda: dying)
    before = content(folder)
    code, _, err = run(*arguments(name, folder))
    assert code == 1
    (line,) = err.strip().splitlines()
    assert re.search(r"\.onnx: was not saved: .*SIGABRT", line)
    assert content(folder) == before
    assert run(*arguments(name, folder, "new.onnx", "new.json"))[0] == 1
    assert content(folder) == before


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize(
    ("error", "code"), [(InputError("as bad input"), 2), (ValueError("a fault"), 1)]
)
def test_where_measuring_fails_nothing_changes(name, error, code, folder, run, monkeypatch):
    failing(monkeypatch, error)
    before = content(folder)
    assert run(*arguments(name, folder))[0] == code
    assert content(folder) == before


def test_a_row_of_models_appears_whole_or_not_at_all(folder, run, monkeypatch):
    real, calls = compressed.divergences, []

    def second_fails(work, session):
        calls.append(session)
        if len(calls) == 2:
            raise InputError("the second")
        return real(work, session)

    monkeypatch.setattr(compressed, "divergences", second_fails)
    before = content(folder)
    assert run(*arguments("pareto", folder))[0] == 2
    assert len(calls) == 2
    assert content(folder) == before


def test_a_plan_that_cannot_be_written_leaves_the_model_of_before(folder, run, monkeypatch):
    before = content(folder)
    real = os.fsync

    def full(descriptor):
        if "p.json" in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    assert run(*arguments("quantize", folder))[0] == 2
    assert content(folder) == before


def test_a_plan_file_is_whole_or_the_one_of_before(tmp_path, monkeypatch):
    plan, path = Plan.model_validate({"source": {}}), tmp_path / "plan.json"
    path.write_text("before")

    def full(_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(InputError, match="No space left"):
            plan.save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]
    assert path.read_text() == "before"
    plan.save(path)
    assert Plan.load(path) == plan


def test_the_demo_leaves_nothing_either(folder, run, monkeypatch):
    failing(monkeypatch, InputError("as bad input"))
    before = content(folder)
    assert run("demo", "-o", folder / "o.onnx")[0] == 2
    assert content(folder) == before


# What holds appears


@pytest.mark.parametrize("name", ["quantize", "external", "lower"])
def test_what_holds_replaces_what_was_there(name, folder, run):
    assert run(*arguments(name, folder))[0] == 0
    assert (folder / "o.onnx").stat().st_mode & 0o777 == 0o640
    assert Session(folder / "o.onnx").outputs == ["y"]
    assert Plan.load(folder / "p.json").quantize or name == "lower"
    assert not [p for p in folder.iterdir() if p.name.startswith(".")]
    (data,) = [p.name for p in folder.glob("*.data")] or [None]
    assert (data is None) == (name != "external")


def test_unverified_files_are_loaded_nowhere(folder, run, monkeypatch, tmp_path):
    monkeypatch.setattr(isolated, "CHILD", tmp_path / "missing")
    code, text, _ = run(*arguments("quantize", folder), "--no-verify", "--json")
    assert code == 0
    assert json.loads(text)["divergence"] == {}


# What is checked


def changed(monkeypatch, change):
    """Every lowering gets a change of its output, as a fault of a pass would make it."""
    real = CpuTarget.lower

    def lower(target, *given):
        done = real(target, *given)
        change(done.model.graph)
        return done

    monkeypatch.setattr(CpuTarget, "lower", lower)


def behind(graph, op, *constants, **attributes):
    """Put a node behind the output, which keeps its name."""
    old = graph.outputs[0]
    stored = [ir.Value(name=f"c{i}", const_value=ir.tensor(c)) for i, c in enumerate(constants)]
    for value in stored:
        graph.initializers.add(value)
    node = ir.node(op, [old, *stored], attributes)
    new = node.outputs[0]
    new.name, old.name, new.type, new.shape = "y", "before", old.type, old.shape
    graph.append(node)
    graph.outputs[0] = new
    return new


def renamed(graph):
    behind(graph, "Identity").name = "z"


def retyped(graph):
    behind(graph, "Cast", to=int(ir.DataType.DOUBLE)).type = ir.TensorType(ir.DataType.DOUBLE)


def of_other_rank(graph):
    behind(graph, "Unsqueeze", np.asarray([0])).shape = None


def not_finite(graph):
    behind(graph, "Log")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (renamed, "its outputs are z; expected y"),
        (retyped, "output y has the type tensor(double); expected tensor(float)"),
        (of_other_rank, "output y has the shape (1, 1, 64); expected one like (1, 64)"),
        (not_finite, "output y holds NaN or infinity where the original does not"),
    ],
)
def test_a_result_that_is_not_like_the_original_is_not_saved(
    change, reason, folder, run, monkeypatch
):
    changed(monkeypatch, change)
    before = content(folder)
    code, _, err = run(*arguments("quantize", folder))
    assert code == 1
    assert f"was not saved: {reason}" in err
    assert content(folder) == before


def expected(outputs, types):
    return Expected({"x": np.zeros(2, np.float32)}, outputs, types)


def test_sequences_and_infinities_of_the_original_are_fine(tmp_path):
    path = tmp_path / "m.onnx"
    built = ir.from_onnx_text(
        """<ir_version: 9, opset_import: ["": 20]>
        net (float[2] x) => (seq(float[2]) s, float[2] y) { y = Log(x) s = SequenceConstruct(x) }"""
    )
    onnx.save(ir.serde.serialize_model(built), path)
    types = {"s": "seq(tensor(float))", "y": "tensor(float)"}
    lost = np.full(2, -np.inf, np.float32)
    zeros = np.zeros(2, np.float32)
    check_saved(path, expected({"s": as_array([zeros]), "y": lost}, types), SessionSettings(), "m")
    with pytest.raises(UnsoundResult, match="output y holds NaN or infinity"):
        check_saved(
            path, expected({"s": as_array([zeros]), "y": zeros}, types), SessionSettings(), "m"
        )
    wrong = expected({"s": zeros, "y": lost}, types)
    with pytest.raises(UnsoundResult, match=r"output s has the shape \(1, 2\)"):
        check_saved(path, wrong, SessionSettings(), "m")


def test_a_model_of_its_own_is_loaded_before_it_is_saved(tmp_path):
    built = ir.from_onnx_text(
        """<ir_version: 9, opset_import: ["": 20]>
        net (float[2] x) => (float[2] y) { y = Relu(x) }"""
    )
    assert lwqc.save(built, tmp_path / "m.onnx").path.exists()
    built.graph[0].op_type = "NoSuchOperator"
    with pytest.raises(UnsoundResult, match=r"n\.onnx: was not saved: .*NoSuchOperator"):
        lwqc.save(built, tmp_path / "n.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
    lwqc.save(built, tmp_path / "n.onnx", verify=False)
