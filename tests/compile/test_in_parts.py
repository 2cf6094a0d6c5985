"""Jobs within a bound on memory: the same results in parts, also after kills."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import numpy as np
import onnx
import pytest

from lwqc.backends.make_target import make_target
from lwqc.compile.compared_in_parts import divergences_in_parts
from lwqc.compile.execute import execute
from lwqc.compile.kept_parts import KeptParts
from lwqc.compile.losses import divergences
from lwqc.decide.compress import compress_version, open_version
from lwqc.decide.lower import lower_plan
from lwqc.errors import InputError
from lwqc.model import io
from lwqc.passes.to_encode import Held
from lwqc.plans.goals import Goals
from lwqc.plans.option_texts import parse_memory
from lwqc.plans.plan import SiteEntry
from lwqc.plans.recipe import find, uniform_recipe
from lwqc.runtime.session import Session
from models import stdlib_lm
from tests.build import model, normal, residual_blocks

WIDTH, HIDDEN, BLOCKS = 64, 256, 6
MEMORY = "545MB"  # a few megabytes beside what libraries take: one product fits, two do not
GPTQ = uniform_recipe(4, "none", "mse", method="gptq")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A stack of residual blocks with external data, and its data."""
    folder = tmp_path_factory.mktemp("parts")
    io.save(residual_blocks(WIDTH, HIDDEN, BLOCKS), folder / "inline.onnx")
    proto = onnx.load(folder / "inline.onnx")
    path = folder / "m.onnx"
    onnx.save(proto, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    np.savez(folder / "d.npz", x0=normal(64, WIDTH, seed=99))
    return path


def opened(path, memory=None, **more):
    return open_version(path, data=str(path.with_name("d.npz")), memory=memory, **more)


def content(path):
    files = sorted(path.parent.glob(f"{path.name}*"))
    return {f.name: f.read_bytes() for f in files}


def test_the_model_runs_in_parts(small):
    work = opened(small, MEMORY)
    assert len(work.grams.segments) == BLOCKS


@pytest.mark.parametrize(
    "recipe", [GPTQ, find("awq"), find("gptq"), find("hqq")], ids=lambda r: r.name
)
def test_the_same_bytes_with_and_without_a_bound(small, tmp_path, recipe):
    found = []
    for name, memory in (("whole", None), ("parts", MEMORY)):
        (tmp_path / name).mkdir()
        out = tmp_path / name / "out.onnx"
        work = opened(small, memory, skip_checks=True)
        done = compress_version(work, Goals(), recipe, exact=True)
        report = done.save(out, external_data=True)
        found.append(content(out))
    assert found[0] == found[1]
    assert report.divergence
    assert "no model is loaded whole" in report.unmeasured
    assert not (tmp_path / "parts" / "out.onnx.parts").exists()


def test_a_decoder_in_parts(tmp_path):
    """Cuts between blocks change what the runtime fuses: codes are the same all the same."""
    found, feeds = [], list(stdlib_lm.calibration())[:1]
    for memory in (None, "600MB"):
        work = open_version(stdlib_lm.MODEL, data=feeds, memory=memory, skip_checks=True)
        done = compress_version(work, Goals(), GPTQ, exact=True)
        done.save(tmp_path / "out.onnx", verify=False)
        found.append(content(tmp_path / "out.onnx"))
    assert len(work.grams.segments) >= stdlib_lm.LAYERS
    assert found[0] == found[1]


def test_verification_in_parts(small, tmp_path):
    work = opened(small)
    compress_version(work, Goals(), GPTQ, exact=True).save(tmp_path / "q.onnx", verify=False)
    whole = divergences(work, Session(tmp_path / "q.onnx"))
    parts = divergences_in_parts(opened(small, MEMORY), io.load(tmp_path / "q.onnx"))
    assert parts.keys() == whole.keys()
    for name, one in whole.items():
        assert 0 < one.error < 0.1
        # Products of other segments are packed and fused differently: float32 rounding.
        assert parts[name].error == pytest.approx(one.error, rel=1e-4)
        assert parts[name].samples == one.samples


def test_lowering_for_a_gpu_in_parts(small, tmp_path):
    found = []
    for memory in (None, MEMORY):
        work = opened(small, memory, target="cuda")
        assert work.job.target.name == make_target("cuda").name
        done = execute(work, Goals(), lower_plan(work))
        report = done.save(tmp_path / "out.onnx", external_data=True)
        found.append((content(tmp_path / "out.onnx"), done.decisions.floats))
        assert report.divergence
    assert found[0] == found[1]


def test_lowering_a_quantized_model_in_parts(small, tmp_path):
    made = compress_version(opened(small), Goals(), uniform_recipe(4, "none", "mse"), exact=True)
    made.save(tmp_path / "q.onnx", verify=False)
    found, data = [], str(small.with_name("d.npz"))
    for memory in (None, MEMORY):
        work = open_version(tmp_path / "q.onnx", data=data, memory=memory, target="cuda")
        execute(work, Goals(), lower_plan(work)).save(tmp_path / "out.onnx")
        found.append(content(tmp_path / "out.onnx"))
    assert found[0] == found[1]
    with pytest.raises(InputError, match="as floats and as codes, needs"):
        lower_plan(open_version(tmp_path / "q.onnx", data=data, memory="537MB", target="cuda"))


def test_what_does_not_fit_is_told_in_a_line(small):
    work = opened(small, "538MB")
    with pytest.raises(InputError, match=r"--memory 538.00 MB: .* give at least 5\d"):
        compress_version(work, Goals(), GPTQ, exact=True).save(small.with_name("none.onnx"))
    assert not list(small.parent.glob("none*"))


@pytest.mark.parametrize(
    ("recipe", "what"),
    [
        ("auto", "recipe auto"),
        ("w8a8-static", "ranges of activations"),
        ("brecq", "takes it whole"),
    ],
)
def test_what_takes_a_model_whole_is_refused(small, recipe, what):
    with pytest.raises(InputError, match=what):
        compress_version(opened(small, MEMORY), Goals(), recipe).save(small.with_name("no.onnx"))


@pytest.mark.parametrize("budget", [{"max_size": 0.3}, {"avg_bits": 4.5}, {"max_latency": 0.5}])
def test_searches_under_a_budget_are_refused(small, budget):
    with pytest.raises(InputError, match="--memory works on a model in parts"):
        compress_version(opened(small, MEMORY), Goals(**budget), "auto")


@pytest.mark.parametrize("given", [5.38e8, np.int64(538_000_000), "538 MB"])
def test_a_bound_may_be_any_number(given):
    assert parse_memory(given) == 538_000_000


@pytest.mark.parametrize("given", ["8 parsecs", "0.5", "50%", "0GB", -1, 0.0, np.nan, np.inf, [8]])
def test_what_is_no_bound_is_told(given):
    with pytest.raises(InputError, match="expected a size such as 8GB"):
        parse_memory(given)


def test_the_largest_inputs_decide_how_batches_are_taken_apart(small):
    feeds = [{"x0": normal(rows, WIDTH, seed=5)} for rows in (8, 4096)]
    batches = []
    for order in (feeds, feeds[::-1]):
        work = open_version(small, data=order, memory="545MB", skip_checks=True)
        work.grams("u3")
        batches.append(work.grams.parts.batch)
    assert batches[0] == batches[1] < 4096


def test_batches_are_taken_apart_where_activations_do_not_fit(small, tmp_path):
    feeds = [{"x0": normal(4096, WIDTH, seed=5)}]
    works = [open_version(small, data=feeds, memory=m, skip_checks=True) for m in (None, "545MB")]
    whole, parts = ((w, w.grams("u3")) for w in works)
    assert parts[0].grams.parts.batch < 4096
    np.testing.assert_allclose(parts[1], whole[1], rtol=1e-4, atol=1e-4)


def start(small, out):
    arguments = ["quantize", str(small), "-o", str(out), "--bits", "4", "--method", "gptq"]
    more = ["--data", str(small.with_name("d.npz")), "--memory", MEMORY, "--external-data"]
    command = [sys.executable, "-m", "lwqc.cli", *arguments, *more, "--json"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_job_that_is_killed_twice_ends_with_the_same_bytes(small, tmp_path):
    pytest.importorskip("fcntl")
    plain = compress_version(opened(small, MEMORY), Goals(), GPTQ, exact=True)
    plain.save(tmp_path / "plain.onnx", external_data=True)
    codes = tmp_path / "out.onnx.parts" / "codes"
    for count in (3, 7):
        run = start(small, tmp_path / "out.onnx")
        while run.poll() is None and len(list(codes.glob("*.npz"))) < count:
            time.sleep(0.001)
        os.kill(run.pid, signal.SIGKILL)
        run.communicate()
        assert run.returncode == -signal.SIGKILL
        assert not (tmp_path / "out.onnx").exists()
    kept = {f: f.stat().st_mtime_ns for f in codes.glob("*.npz")}
    assert len(kept) >= 7
    run = start(small, tmp_path / "out.onnx")
    out, error = run.communicate(timeout=300)
    assert run.returncode == 0, error
    assert "an earlier run had kept" in out
    (data,) = tmp_path.glob("out.onnx.*.data")
    (other,) = tmp_path.glob("plain.onnx.*.data")
    assert data.read_bytes() == other.read_bytes()
    assert not codes.exists()


def test_what_is_not_ours_is_left_alone(small, tmp_path):
    other = tmp_path / "out.onnx.parts"
    other.mkdir()
    (other / "mine.txt").write_text("x")
    done = compress_version(opened(small, MEMORY), Goals(), GPTQ, exact=True)
    with pytest.raises(InputError, match="is no folder that lwqc wrote"):
        done.save(tmp_path / "out.onnx")
    assert (other / "mine.txt").exists()


def test_damaged_codes_are_told(small, tmp_path):
    kept = KeptParts(tmp_path / "out.onnx", "key")
    codes = compress_version(opened(small), Goals(), GPTQ, exact=True).coded.weights
    entry = SiteEntry(weight="w4b32h", method="hqq")
    held = Held(codes.get("u0", entry))
    kept.put("u0", held)
    again = kept.get("u0", entry.weight)
    assert np.array_equal(again.encoded.codes, held.encoded.codes)
    with pytest.raises(InputError, match="another process is at work"):
        KeptParts(tmp_path / "out.onnx", "key")
    (file,) = (kept.path / "codes").iterdir()
    with np.load(file) as whole:
        left = {name: array for name, array in whole.items() if name != "zero"}
    np.savez(file, **left)
    with pytest.raises(InputError, match="is damaged: remove"):
        kept.get("u0", entry.weight)
    file.write_bytes(file.read_bytes()[:99])
    with pytest.raises(InputError, match="is damaged: remove"):
        kept.get("u0", entry.weight)


def test_sizes_of_random_data_are_found_where_the_model_fits(tmp_path):
    """Only a number of rows that four divides can be reshaped."""
    rows = [("Reshape", ["x", "shape"], "r", {}), ("MatMul", ["r", "w"], "y", {})]
    stored = {"shape": np.array([-1, 4, 64]), "w": normal(64, 64)}
    io.save(model(rows, stored, {"x": ["n", 64]}, ["y"]), tmp_path / "m.onnx")
    work = open_version(tmp_path / "m.onnx", memory=MEMORY)
    assert len(work.job.data.fit.first()["x"]) % 4 == 0
    report = compress_version(work, Goals(), uniform_recipe(8, "none", "mse"), exact=True).save(
        tmp_path / "q.onnx"
    )
    assert report.divergence["y"].cosine_mean > 0.999
