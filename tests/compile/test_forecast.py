"""What a job within a bound on memory will take, before it begins."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest

from lwqc.compile.forecast import rates
from lwqc.compile.forecast.forecast import of_result
from lwqc.compile.forecast.stages import Workload
from lwqc.decide.compress import compress_version, open_version
from lwqc.model import io
from lwqc.plans.goals import Goals
from lwqc.plans.recipe import find, uniform_recipe
from tests.build import model, normal, residual_blocks

WIDTH, HIDDEN, BLOCKS, ROWS = 64, 256, 6, 32
WEIGHTS = 4 * BLOCKS * 2 * WIDTH * HIDDEN  # bytes
MEMORY = "545MB"
GPTQ = uniform_recipe(4, "none", "mse", method="gptq")


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """Speeds are measured on pieces as small as the model."""
    monkeypatch.setattr(rates, "_WIDTH", 256)
    monkeypatch.setattr(rates, "_MATRICES", ((64, 64), (256, 64), (64, 128), (128, 128)))
    monkeypatch.setattr(rates, "_BYTES", 1 << 20)
    monkeypatch.setattr(rates, "_WIDE", 128)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Residual blocks with external data, and 64 samples in two batches."""
    folder = tmp_path_factory.mktemp("forecast")
    built = residual_blocks(WIDTH, HIDDEN, BLOCKS)
    io.save(built, folder / "m.onnx", external_data=True)
    np.savez(folder / "d.npz", x0=normal(ROWS, WIDTH, seed=99))
    return folder


def decided(files, recipe=GPTQ, **more):
    work = open_version(
        files / "m.onnx", data=str(files / "d.npz"), memory=MEMORY, skip_checks=True, **more
    )
    return compress_version(work, Goals(), recipe, exact=True)


def test_what_is_moved_is_counted_on_the_graph(files, tmp_path):
    done = decided(files)
    found = of_result(done)
    stages = {stage.name: stage for stage in found.stages}
    assert list(stages) == ["deciding", "statistics", "encoding", "writing", "checking"]
    stream = 4 * ROWS * WIDTH * (BLOCKS - 1)  # between parts of one block
    assert stages["statistics"].written == stream
    assert stages["statistics"].read == WEIGHTS + stream
    assert stages["encoding"].read == WEIGHTS
    report = done.save(tmp_path / "q.onnx", external_data=True)
    assert found.output_bytes == stages["writing"].written
    assert found.output_bytes == pytest.approx(report.output_bytes, rel=0.05)
    assert stages["checking"].read > WEIGHTS + report.output_bytes - found.output_bytes // 10
    assert found.memory >= found.own + max(s.memory for s in found.stages)
    assert all((stage.seconds >= 0).all() for stage in found.stages)
    assert found.seconds == pytest.approx(sum(s.seconds[0] for s in found.stages))


def test_what_is_not_done_is_not_counted(files):
    rounded = uniform_recipe(4, "none", "mse")
    names = [s.name for s in of_result(decided(files, rounded), verify=False).stages]
    assert names == ["deciding", "encoding", "writing"]
    half = decided(files, rounded, target="cuda")
    assert "ranges" in [s.name for s in of_result(half).stages]


@pytest.mark.parametrize("bits", [8, 3, 2])
def test_any_bits(files, bits):
    found = of_result(decided(files, uniform_recipe(bits, "none", "mse")))
    assert found.output_bytes < WEIGHTS


def test_more_data_is_more_statistics(files, tmp_path):
    few = of_result(decided(files)).stages[1]
    np.savez(tmp_path / "more.npz", x0=normal(8 * ROWS, WIDTH, seed=99))
    work = open_version(
        files / "m.onnx", data=str(tmp_path / "more.npz"), memory=MEMORY, skip_checks=True
    )
    many = of_result(compress_version(work, Goals(), GPTQ, exact=True)).stages[1]
    assert many.written == 8 * few.written


@pytest.mark.parametrize("name", ["w4", "w8", "gptq", "hqq"])
def test_a_weight_that_is_larger_never_takes_less(name):
    found = rates.encoding(decided_entry(find(name)))
    assert (found.of >= 0).all()
    assert (found.seconds(2048, 1024) > found.seconds(1024, 512)).all()


def decided_entry(recipe):
    """An entry of a recipe's plan."""
    built = model([("MatMul", ["x", "w"], "y", {})], {"w": normal(64, 64)}, {"x": ["n", 64]}, ["y"])
    done = compress_version(
        open_version(built, data="random:2", skip_checks=True), Goals(), recipe, exact=True
    )
    (entry,) = done.decisions.quantize.values()
    return entry


def test_nothing_is_written(run, files, tmp_path):
    out = tmp_path / "q.onnx"
    bound = ["--data", files / "d.npz", "--memory", MEMORY, "--dry-run"]
    method = ["--bits", 4, "--method", "gptq"]
    code, told, _ = run("quantize", files / "m.onnx", "-o", out, *method, *bound)
    assert code == 0
    assert [w for w in ("deciding", "statistics", "encoding", "checking") if w not in told] == []
    code, told, _ = run("lower", files / "m.onnx", "-o", out, "--target", "cuda", *bound, "--json")
    assert code == 0
    found = json.loads(told)
    assert found["seconds"] == pytest.approx(sum(s["seconds"] for s in found["stages"]))
    assert found["memory_bound_bytes"] == 545_000_000
    other = decided(files).save(tmp_path / "other.onnx", external_data=True)
    before = sorted(p.name for p in tmp_path.iterdir())
    code, told, _ = run("verify", files / "m.onnx", tmp_path / "other.onnx", *bound, "--json")
    assert code == 0
    assert [s["stage"] for s in json.loads(told)["stages"]] == ["deciding", "checking"]
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    assert other.output_bytes > 0
    assert not out.exists()


def test_a_plan_is_foretold(run, files, tmp_path):
    plan = tmp_path / "p.json"
    data = ["--data", files / "d.npz"]
    assert run("plan", files / "m.onnx", "-o", plan, "--recipe", "gptq", *data)[0] == 0
    job = ["apply", files / "m.onnx", plan, "-o", tmp_path / "q.onnx", *data, "--dry-run"]
    code, told, _ = run(*job, "--memory", MEMORY)
    assert code == 0
    assert "encoding" in told
    assert not (tmp_path / "q.onnx").exists()
    code, _, err = run(*job)
    assert (code, "--dry-run foretells jobs within a bound on memory: give --memory" in err) == (
        2,
        True,
    )


def test_steps_that_are_not_counted_are_refused(run, files, tmp_path):
    plan = tmp_path / "p.json"
    data = ["--data", files / "d.npz", "--memory", MEMORY]
    assert run("plan", files / "m.onnx", "-o", plan, "--recipe", "awq", *data)[0] == 0
    out = tmp_path / "q.onnx"
    code, _, err = run("apply", files / "m.onnx", plan, "-o", out, *data, "--dry-run")
    assert code == 2
    assert "--dry-run does not foretell the plan's step transforms" in err


def test_what_has_no_room_is_told_before(run, files, tmp_path):
    bound = ["--data", files / "d.npz", "--memory", "537MB", "--dry-run"]
    method = ["--bits", 4, "--method", "gptq"]
    code, _, err = run("quantize", files / "m.onnx", "-o", tmp_path / "q.onnx", *method, *bound)
    assert code == 2
    assert "give at least" in err


def test_bodies_do_not_move_the_counts(tmp_path):
    """The If stands before what is counted, with nodes of its own."""
    net = onnx.parser.parse_model("""<ir_version: 10, opset_import: ["": 20]>
    net (float[64, 64] x, bool c) => (float[64, 64] y) {
        t = If (c) <
            then_branch = a () => (float[64, 64] t1) { s = Relu (x) t1 = Neg (s) },
            else_branch = b () => (float[64, 64] t2) { t2 = Neg (x) }
        >
        y = MatMul (t, w)
    }""")
    net.graph.initializer.append(onnx.numpy_helper.from_array(normal(64, 64), "w"))
    onnx.save(net, tmp_path / "m.onnx")
    feeds = [{"x": normal(64, 64), "c": np.array(True)}]
    work = open_version(tmp_path / "m.onnx", data=feeds, memory="700MB", skip_checks=True)
    done = compress_version(work, Goals(), GPTQ, exact=True)
    assert Workload(done.coded, done.decisions)._site_rows == {"w": 64}


def test_what_takes_long_without_data_is_kept_too(files):
    hqq = uniform_recipe(4, "none", "mse", method="hqq")
    found = {s.name: s for s in of_result(decided(files, hqq), verify=False).stages}
    assert found["encoding"].written > 0


@pytest.mark.parametrize("option", ["--plan-out", "--report"])
def test_what_would_be_written_is_refused(run, files, tmp_path, option):
    job = ["quantize", files / "m.onnx", "-o", tmp_path / "q.onnx", "--memory", MEMORY]
    code, _, err = run(*job, "--dry-run", option, tmp_path / "other")
    assert (code, f"--dry-run writes nothing: leave out {option}" in err) == (2, True)
