"""Clean-up as a job: from the command line, in plans, before quantization."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import lwqc
from lwqc.compile.cleaned import cleaned, cleaning, cleanup_for
from lwqc.decide.compress import open_version
from lwqc.model import io
from lwqc.plans.plan import Plan
from lwqc.runtime.session import Session
from tests.build import model, normal

LM = Path(__file__).parents[2] / "models" / "stdlib_lm.onnx"
DATA = "tests.compile.test_cleaned:tokens"


def tokens():
    """One window of text."""
    from models import stdlib_lm

    return [{k: v[:1, :64] for k, v in next(iter(stdlib_lm.calibration())).items()}]


def ops(path):
    return [node.op_type for node in onnx.load(path, load_external_data=False).graph.node]


@pytest.mark.usefixtures("untimed")
def test_clean_up_alone_changes_nothing_but_the_graph(run, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("lwqc.decide.base.relative_times", lambda *_, **__: [[1.0], [0.5]])
    out, plan = tmp_path / "o.onnx", tmp_path / "p.json"
    arguments = ("compress", LM, "-o", out, "--no-quantize", "--data", DATA)
    code, shown, _ = run(*arguments, "--plan-out", plan, "--json")
    assert code == 0
    report = json.loads(shown)
    assert "fuse-attention" in report["rewrites"]
    assert report["divergence"]["logits"]["max_abs"] < 1e-3
    assert ops(out).count("Attention") == 12
    assert len(ops(out)) < len(ops(LM))
    onnx.checker.check_model(str(out), full_check=True)
    again = tmp_path / "again.onnx"
    code, _, _ = run("apply", LM, plan, "-o", again, "--data", DATA)
    assert code == 0
    assert out.read_bytes() == again.read_bytes()


def test_a_slower_graph_is_not_taken(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("lwqc.decide.base.relative_times", lambda *_, **__: [[1.0], [2.0]])
    done = lwqc.compress(LM, recipe="clean", data=DATA, keep_metadata=True)
    assert done.plan.clean is None
    assert "it would take 2.00 of its time" in done.plan.untransformed["stdlib_lm.onnx"]
    assert io.to_bytes(done.model) == io.to_bytes(io.load(LM))


def test_integers_on_the_cleaned_graph(tmp_path) -> None:
    done = lwqc.compress(LM, recipe="w8a8-fused", data=DATA)
    report = done.save(tmp_path / "o.onnx")
    assert report.output_bytes < 0.35 * report.source_bytes
    assert report.divergence["logits"].cosine_mean > 0.99
    kernels = [row.kernel for row in report.sites]
    assert kernels.count("MatMulInteger") == 12 * 4 + 1  # q, k, v merged; gate and up merged
    assert ops(tmp_path / "o.onnx").count("Attention") == 12
    assert Plan.model_validate_json(done.plan.model_dump_json()) == done.plan


@pytest.mark.parametrize(
    "extra", [["--recipe", "gptq"], ["--max-size", "0.5"], ["--avg-bits", "4"]]
)
def test_conflicting_options(run, tmp_path, extra) -> None:
    code, _, shown = run("compress", LM, "-o", tmp_path / "o.onnx", "--no-quantize", *extra)
    assert code == 2
    assert "--no-quantize only cleans up" in shown


def _tables(*, few: bool):
    """A transform whose table is computed of its positions, or of as many numbers."""
    table = np.arange(64 * 64).reshape(64, 64)
    rows = [
        ("Mul", ["down", "along"] if few else ["all", "step"], "turns", {}),
        ("Cos", ["turns"], "waves", {}),
        ("MatMul", ["x", "waves"], "a", {}),
        ("MatMul", ["a", "w"], "y", {}),
    ]
    stored = {
        "down": np.arange(64, dtype=np.float32).reshape(64, 1),
        "along": np.arange(64, dtype=np.float32) * np.float32(0.1),
        "all": table.astype(np.float32),
        "step": np.float32(0.01),
        "w": normal(64, 64),
    }
    used = {n: stored[n] for n in ("w", *(("down", "along") if few else ("all", "step")))}
    return model(rows, used, {"x": ["n", 64]}, ["y"])


@pytest.mark.usefixtures("untimed")
def test_tables_stay_computed_where_they_would_make_the_file_larger() -> None:
    built = _tables(few=True)
    made = lwqc.compress(built, recipe="clean", data="random:2").model
    assert "Cos" in [node.op_type for node in made.graph]
    assert io.serialized_bytes(made) <= 1.02 * io.serialized_bytes(built)
    x = {"x": normal(3, 64)}
    assert np.allclose(Session(made)(x)["y"], Session(built)(x)["y"], atol=1e-3)


def test_tables_are_stored_where_that_takes_no_more() -> None:
    built = _tables(few=False)
    work = open_version(built, data="random:2")
    clean, _ = cleaning(work, cleanup_for(work, merge=True))
    assert clean.folding > 64 * 64
    assert "Cos" not in [node.op_type for node in cleaned(work, clean).model.graph]


def test_copies_of_weights_are_made_though_they_take_space() -> None:
    rows = [
        ("MatMul", ["x", "w"], "a", {}),
        ("Transpose", ["w"], "t", {"perm": [1, 0]}),
        ("MatMul", ["a", "t"], "y", {}),
    ]
    work = open_version(model(rows, {"w": normal(64, 96)}, {"x": ["n", 64]}, ["y"]))
    clean, _ = cleaning(work, cleanup_for(work, merge=True))
    assert clean.folding > 64 * 96
    assert len(cleaned(work, clean).model.graph.initializers) == 2


def test_a_clean_up_that_fails_leaves_the_graph_as_it_is(monkeypatch) -> None:
    def fails(*_, **__):
        raise ir.passes.PassError("broken")

    monkeypatch.setattr("lwqc.compile.cleaned.clean_up", fails)
    built = model([("MatMul", ["x", "w"], "y", {})], {"w": normal(64, 64)}, {"x": ["n", 64]}, ["y"])
    plan = lwqc.compress(built, data="random:2").plan
    assert plan.clean is None
    assert "not cleaned up: broken" in plan.untransformed.values()
