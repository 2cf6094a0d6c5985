"""The command line as a user meets it: exit codes, one-line errors, files that appear or do not."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest

import lwqc.cli.demo
from lwqc import cli
from lwqc.model import io
from lwqc.plans.plan import Plan
from lwqc.runtime.session import Session
from tests.build import model, normal

DIGITS = Path(lwqc.cli.demo.__file__).parent / "digits.onnx"
DATA = "lwqc.cli.demo.digits:calibration"
METRIC = "lwqc.cli.demo.digits:accuracy"


@pytest.fixture
def linear(tmp_path):
    path = tmp_path / "linear.onnx"
    built = model(
        [("MatMul", ["x", "w"], "y", {})], {"w": normal(256, 64)}, {"x": ["batch", 256]}, ["y"]
    )
    io.save(built, path)
    return path


def refused(result, *words):
    """One line on stderr with these words, exit code 2."""
    code, _, err = result
    assert code == 2, err
    assert len(err.strip().splitlines()) == 1, err
    for word in words:
        assert word in err
    return True


def test_compress_reports_what_it_measured(run, tmp_path):
    out = tmp_path / "small.onnx"
    code, text, _ = run("compress", DIGITS, "-o", out, "--data", DATA, "--metric", METRIC, "--json")
    assert code == 0
    report = json.loads(text)
    assert report["output_bytes"] == out.stat().st_size < 0.4 * DIGITS.stat().st_size
    assert report["metric_before"] == pytest.approx(0.9944, abs=1e-4)
    assert report["metric_after"] >= report["metric_before"] - 0.01
    assert report["latencies"][0]["after"]["runs"] > 0
    assert {row["kernel"] for row in report["sites"]} & {"QLinearConv", "Folded"}
    for row in report["sites"]:
        assert row["format"] != "float" or row["reason"]
    assert Session(out).outputs == ["logits"]


@pytest.mark.parametrize(
    "budget", [["--max-size", "0.25"], ["--max-size", "100kB"], ["--avg-bits", "5"]]
)
def test_budgets_are_met_by_the_file(run, tmp_path, budget):
    out = tmp_path / "small.onnx"
    code, text, err = run(
        "compress", DIGITS, "-o", out, "--data", DATA, *budget, "--effort", "low", "--json"
    )
    assert code == 0, err
    report = json.loads(text)
    assert all(outcome["met"] for outcome in report["outcomes"])
    # A budget is used, not undercut: the search fills at least two thirds of it.
    outcome = report["outcomes"][0]
    assert outcome["reached"] > 0.66 * outcome["asked"]


def test_max_drop_picks_the_smallest_plan_that_keeps_it(run, tmp_path):
    out = tmp_path / "small.onnx"
    code, text, err = run(
        "compress", DIGITS, "-o", out, "--data", DATA, "--max-drop", "0.02", "--json"
    )
    assert code == 0, err
    report = json.loads(text)
    assert report["drop"] <= 0.02
    assert report["average_bits"] < 6


def test_impossible_budget_saves_the_best_and_exits_with_3(run, tmp_path):
    out = tmp_path / "small.onnx"
    code, _, err = run("compress", DIGITS, "-o", out, "--data", DATA, "--max-size", "1kB",
                       "--effort", "low")  # fmt: skip
    assert code == 3
    assert "size: asked 1000" in err
    assert out.stat().st_size < 0.25 * DIGITS.stat().st_size
    assert Session(out).outputs == ["logits"]


@pytest.mark.parametrize("recipe", ["lwq-lim", "lwq-zd"])
def test_layer_wise_quantization_recipes(run, tmp_path, recipe):
    out = tmp_path / "small.onnx"
    code, text, err = run("compress", DIGITS, "-o", out, "--data", DATA, "--recipe", recipe,
                          "--avg-bits", "7", "--json")  # fmt: skip
    assert code == 0, err
    bits = {row["format"][:2] for row in json.loads(text)["sites"]} - {"fl"}
    assert bits == {"w4", "w8"}


def test_a_plan_replays_bit_for_bit(run, tmp_path):
    plan, first = tmp_path / "plan.json", tmp_path / "first.onnx"
    arguments = ["--data", DATA, "--max-size", "0.25", "--effort", "low"]
    assert run("compress", DIGITS, "-o", first, "--plan-out", plan, *arguments)[0] == 0
    for name in ("second.onnx", "third.onnx"):
        replay = ["-o", tmp_path / name, "--no-verify", "--data", DATA]
        assert run("apply", DIGITS, plan, *replay)[0] == 0
        assert (tmp_path / name).read_bytes() == first.read_bytes()
    assert run("plan", DIGITS, "-o", tmp_path / "again.json", *arguments)[0] == 0
    assert Plan.load(tmp_path / "again.json") == Plan.load(plan)


def test_a_plan_is_refused_by_another_model(run, tmp_path, linear):
    plan = tmp_path / "plan.json"
    assert run("plan", DIGITS, "-o", plan, "--recipe", "w8")[0] == 0
    out = tmp_path / "out.onnx"
    assert refused(run("apply", linear, plan, "-o", out), "the plan is for", "linear.onnx")
    assert not out.exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [("{", "not a valid plan"), ('{"version": 3}', "version"), ("\xff", "plan")],
)
def test_broken_plans_are_refused(run, tmp_path, content, words):
    plan = tmp_path / "plan.json"
    plan.write_bytes(content.encode("latin-1"))
    assert refused(run("apply", DIGITS, plan, "-o", tmp_path / "o.onnx"), words)


def test_bad_model_files(run, tmp_path):
    out = tmp_path / "out.onnx"
    (tmp_path / "text.onnx").write_text("not a model\n" * 100)
    (tmp_path / "empty.onnx").touch()
    (tmp_path / "cut.onnx").write_bytes(DIGITS.read_bytes()[:200_000])
    proto = onnx.load(DIGITS)
    proto.opset_import[0].version = 99
    onnx.save(proto, tmp_path / "future.onnx")
    for name in ("missing.onnx", "text.onnx", "empty.onnx", "cut.onnx", "future.onnx"):
        assert refused(run("compress", tmp_path / name, "-o", out), name)
        assert not out.exists()
    assert refused(run("compress", tmp_path, "-o", out))


@pytest.mark.parametrize(
    ("location", "keep", "words"),
    [
        ("w.bin", 0, "w.bin"),
        ("w.bin", 100, "w.bin"),
        ("../w.bin", 65536, "outside"),
        ("/etc/passwd", 65536, "outside"),
    ],
    ids=["missing", "short", "parent", "absolute"],
)
def test_bad_external_data(run, tmp_path, linear, location, keep, words):
    folder = tmp_path / "model"
    folder.mkdir()
    proto = onnx.load(linear)
    onnx.save(proto, folder / "m.onnx", save_as_external_data=True, location="w.bin",
              size_threshold=0)  # fmt: skip
    data = (folder / "w.bin").read_bytes()
    proto = onnx.load(folder / "m.onnx", load_external_data=False)
    for entry in proto.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = location
    onnx.save(proto, folder / "m.onnx")
    (folder / "w.bin").unlink()
    if keep:
        (folder / location if not location.startswith("/") else folder / "w.bin").write_bytes(
            data[:keep]
        )
    out = tmp_path / "out.onnx"
    assert refused(run("compress", folder / "m.onnx", "-o", out), words)
    assert not out.exists()


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"z": normal(8, 256)}, "x"),
        ({"x": normal(8, 255)}, "shape"),
        ({"x": normal(8, 256).astype(np.float64)}, "float64"),
        ({"x": np.full((8, 256), np.nan, np.float32)}, "NaN"),
        ({"x": np.zeros((0, 256), np.float32)}, "no samples"),
    ],
    ids=["name", "shape", "dtype", "nan", "empty"],
)
def test_bad_data(run, tmp_path, linear, arrays, words):
    np.savez(tmp_path / "d.npz", **arrays)
    out = tmp_path / "out.onnx"
    assert refused(run("compress", linear, "-o", out, "--data", tmp_path / "d.npz"), words)
    assert not out.exists()


@pytest.mark.parametrize(
    "spec", ["nothing.npz", "no.such.module:f", "lwqc.cli.demo.digits:no", "huh"]
)
def test_data_that_cannot_be_opened(run, tmp_path, spec):
    assert refused(run("compress", DIGITS, "-o", tmp_path / "o.onnx", "--data", spec), spec)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--max-size", "0"],
        ["--max-size", "2"],
        ["--max-size", "10 parsecs"],
        ["--max-drop", "-1"],
        ["--avg-bits", "0"],
        ["--recipe", "nonsense"],
        ["--target", "abacus"],
        ["--metric", "nonsense"],
        ["--shape", "batch"],
        ["--no-such-option"],
        ["--recipe", "lwq-zd"],
    ],
    ids=" ".join,
)
def test_bad_usage(run, tmp_path, arguments):
    out = tmp_path / "o.onnx"
    assert refused(run("compress", DIGITS, "-o", out, *arguments))
    assert not out.exists()


def test_bad_outputs(run, tmp_path, linear):
    before = linear.read_bytes()
    assert refused(run("compress", linear, "-o", linear), "input")
    link = tmp_path / "link.onnx"
    link.symlink_to(linear)
    assert refused(run("compress", linear, "-o", link), "input")
    assert refused(run("compress", linear, "-o", tmp_path / "no" / "o.onnx"), "no")
    assert refused(run("compress", linear, "-o", tmp_path))
    assert linear.read_bytes() == before


def test_disk_full(run, tmp_path, linear):
    """A real write error: the process may not write files above 4 kB."""
    out = tmp_path / "out.onnx"
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "sys.dont_write_bytecode = True;"  # Python 3.11 leaves half of it, which nobody can import
        "from lwqc import cli; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096));"
        f"sys.argv = ['lwqc', 'quantize', {str(linear)!r}, '-o', {str(out)!r}, '--no-verify'];"
        "cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "cannot be written" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["linear.onnx"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL, signal.SIGTERM])
def test_interrupted_runs_leave_no_partial_output(tmp_path, number):
    big = tmp_path / "big.onnx"
    built = model(
        [("MatMul", ["x", "w"], "y", {})], {"w": normal(3000, 4000)}, {"x": ["b", 3000]}, ["y"]
    )
    io.save(built, big)
    out = tmp_path / "out.onnx"
    for delay in (0.8, 1.4, 1.8):
        process = subprocess.Popen(
            [sys.executable, "-m", "lwqc.cli", "quantize", str(big), "-o", str(out), "--bits", "4",
             "--external-data"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        time.sleep(delay)
        process.send_signal(number)
        code = process.wait()
        if code == 0 or out.exists():
            Session(out)  # finished in time: whole
        else:
            left = {p.name for p in tmp_path.iterdir() if not p.name.startswith(".")}
            assert left == {"big.onnx"}
            if number != signal.SIGKILL:
                assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]
        for file in tmp_path.glob("out.onnx*"):
            file.unlink()


def test_verify_and_bench(run, tmp_path):
    out = tmp_path / "w4.onnx"
    assert run("quantize", DIGITS, "-o", out, "--bits", "4", "--data", DATA)[0] == 0
    code, text, _ = run("verify", DIGITS, out, "--data", DATA, "--json")
    found = json.loads(text)
    assert code == 0
    assert 0 < found["drop"] < 0.02
    assert found["outputs"]["logits"]["samples"] == 128
    assert run("verify", DIGITS, DIGITS, "--json")[0] == 0
    assert run("verify", DIGITS, out, "--data", DATA, "--max-drop", "1e-9")[0] == 3
    code, text, _ = run("bench", DIGITS, out, "--seconds", "0.1", "--json")
    assert code == 0
    assert len(json.loads(text)) == 2


def test_inspect_lists_sites_and_costs(run):
    code, text, _ = run("inspect", DIGITS, "--json", "--shape", "batch=2")
    found = json.loads(text)
    assert code == 0
    assert len(found["sites"]) == 7
    assert found["parameters"] == pytest.approx(112_000, rel=0.02)
    convolution = next(c for c in found["costs"] if c["op"] == "Conv")
    assert convolution["macs"] == 2 * 32 * 9 * 64
    assert run("inspect", DIGITS, "--sites", "--cost")[0] == 0


def test_recipes_are_listed_and_shown(run):
    code, text, _ = run("recipes")
    assert code == 0
    assert "lwq-lim" in text
    assert json.loads(run("recipes", "auto")[1])[0]["allocator"] == "auto"
    assert refused(run("recipes", "nonsense"), "nonsense")


def test_demo_runs_the_main_job(run, tmp_path):
    out = tmp_path / "demo.onnx"
    code, text, _ = run("demo", "-o", out, "--json")
    assert code == 0
    report = json.loads(text)
    assert report["metric_after"] >= 0.98
    assert report["output_bytes"] < 0.4 * report["source_bytes"]


def test_convert_exports_a_torch_module(run, tmp_path, monkeypatch):
    pytest.importorskip("torch", reason="needs the extra lwqc[torch]")
    (tmp_path / "mynet.py").write_text(
        "import torch\n"
        "def make():\n"
        "    net = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU())\n"
        "    return net, (torch.randn(2, 64),)\n"
    )
    monkeypatch.chdir(tmp_path)
    assert run("convert", "mynet:make", "-o", "net.onnx")[0] == 0
    assert Session(tmp_path / "net.onnx").outputs
    assert refused(run("convert", "mynet:other", "-o", "x.onnx"), "other")
    assert refused(run("convert", "nonsense", "-o", "x.onnx"), "module:callable")


def test_debug_shows_the_traceback(monkeypatch, tmp_path):
    monkeypatch.setattr(
        sys, "argv", ["lwqc", "compress", "no.onnx", "-o", str(tmp_path / "o.onnx"), "--debug"]
    )
    with pytest.raises(lwqc.InputError):
        cli.main()
