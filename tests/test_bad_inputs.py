"""Bad options, plans, recipes, logs, outputs and user code: one line each, and exit code 2.

What models and data files may hold is tested elsewhere. Every case has a name; none may do work.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from lwqc.model import io
from lwqc.runtime.timing_cache import _read
from tests.build import model, normal

HUGE = "1" + "0" * 400
DEEP = "[" * 100_000
NUMERALS = {
    "nan": "nan", "infinity": "inf", "overflow": "1e999", "arabic": "٣", "superscript": "²",
    "underscore": "1_0", "hexadecimal": "0x10", "huge": HUGE, "space": " 1", "nothing": "",
}  # fmt: skip
NUMBERS = {
    "compress": ["--avg-bits", "--max-drop", "--time-limit", "--workers", "--pareto", "--seed"],
    "prune": ["--ratio", "--round-to", "--min-channels"],
    "drop": ["--keep-first", "--keep-last", "--protect", "--max-divergence"],
    "lower": ["--max-drop"],
    "bench": ["--seconds"],
    "verify": ["--blame-check"],
}
MODULES = {
    "exits": "raise SystemExit(0)",
    "fails": "raise ValueError('two\\nlines')",
    "metrics": """
        def nan(run): return float("nan")
        def infinite(run): return float("inf")
        def text(run): return "0.9"
        def nothing(run): return None
        def several(run): return [0.5, 0.5]
        def imaginary(run): return 1j
        def huge(run): return 10**400
        def exits(run): raise SystemExit(0)
        def leaves(run): import sys; sys.exit("bye")
        def raises(run): raise KeyError("a\\nb")
        number = 3
    """,
    "sources": """
        import helper_of_sources
        def exits(): raise SystemExit(0)
        def exits_late():
            yield {}
            raise SystemExit(0)
        def number(): return 3
        def texts(): return ["x"]
        def good(): return [helper_of_sources.feeds()]
    """,
    "helper_of_sources": """
        import numpy as np
        def feeds(): return {"x": np.ones((8, 64), np.float32)}
    """,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A small model, data, a plan, a recipe, a search log and modules."""
    path = tmp_path_factory.mktemp("inputs")
    rows = [
        ("MatMul", ["x", "w"], "h", {}), ("Relu", ["h"], "r", {}), ("MatMul", ["r", "v"], "y", {})
    ]  # fmt: skip
    weights = {"w": normal(64, 32), "v": normal(32, 16)}
    built = model(rows, weights, {"x": ["batch", 64]}, ["y"])
    io.save(built, path / "m.onnx")
    proto = onnx.load(path / "m.onnx")
    onnx.save(
        proto, path / "e.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0
    )
    np.savez(path / "d.npz", x=normal(16, 64))
    (path / "samples").mkdir()
    np.savez(path / "samples" / "one.npz", x=normal(8, 64))
    (path / "p.json").write_text('{"source": {}}')
    (path / "r.toml").write_text('name = "n"\ndescription = "d"\nallocator = "uniform"\n')
    for name, text in MODULES.items():
        lines = text.strip("\n").splitlines()
        (path / f"{name}.py").write_text("\n".join(line.removeprefix(" " * 8) for line in lines))
    os.mkfifo(path / "pipe")
    (path / "loop").symlink_to("loop")
    (path / "link.onnx").symlink_to("m.onnx")
    (path / "hard.onnx").hardlink_to(path / "m.onnx")
    (path / "link.npz").symlink_to("d.npz")
    return path


@pytest.fixture(autouse=True)
def inside(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))


def state(folder: Path) -> dict[str, Any]:
    """Names, contents and permissions of everything."""
    return {
        str(p.relative_to(folder)): p.read_bytes() if p.is_file() else p.lstat().st_mode
        for p in sorted(folder.rglob("*"))
        if "__pycache__" not in p.parts
    }


def refused(run, folder: Path, arguments, *words: str) -> None:
    before = state(folder)
    code, out, err = run(*arguments)
    assert code == 2, (out, err)
    assert err.startswith("lwqc: ")
    assert len(err.splitlines()) == 1, err
    assert len(err) < 1000
    assert "internal" not in err
    for word in words:
        assert word in err
    assert state(folder) == before


def usage(command: str) -> list[str]:
    models = {"bench": ["m.onnx"], "verify": ["m.onnx", "m.onnx"], "inspect": ["m.onnx"]}
    return [command, *models.get(command, ["m.onnx", "-o", "o.onnx"])]


# Numbers

OPTIONS = [(c, o, n) for c, options in NUMBERS.items() for o in options for n in NUMERALS]


@pytest.mark.parametrize(("command", "option", "name"), OPTIONS)
def test_odd_numerals(run, folder, command, option, name):
    refused(run, folder, [*usage(command), f"{option}={NUMERALS[name]}"])


AMOUNTS = {
    "size without end": ["compress", "--max-size", "1e999MB"],
    "size in arabic": ["compress", "--max-size", "٣MB"],
    "size of no number": ["compress", "--max-size", "nanMB"],
    "time without end": ["compress", "--max-latency", "1e999ms"],
    "products without end": ["compress", "--max-macs", "1e999G"],
    "memory without end": ["compress", "--max-memory", "1e999GB"],
    "time limit 0": ["compress", "--time-limit", "0"],
    "no workers": ["compress", "--workers", "0"],
    "a million workers": ["compress", "--workers", "1000000"],
    "a row of one": ["compress", "--pareto", "1"],
    "a row of a million": ["compress", "--pareto", "1000000"],
    "negative seed": ["compress", "--seed", "-1"],
    "share of no number": ["drop", "--branches", "nan%"],
    "share without end": ["drop", "--branches", "1e999%"],
    "more than all": ["drop", "--branches", "101%"],
    "negative share": ["drop", "--branches", "-5%"],
    "half a branch": ["drop", "--branches", "1.5"],
    "branches in arabic": ["drop", "--branches", "٣"],
    "negative keep": ["drop", "--keep-first", "-1"],
    "negative divergence": ["drop", "--max-divergence", "-1"],
    "spared more than all": ["drop", "--protect", "2"],
    "group of no number": ["prune", "--group", "w=nan"],
    "group without share": ["prune", "--group", "w"],
    "group of more than all": ["prune", "--group", "w=2"],
    "ratio above 1": ["prune", "--ratio", "1.5"],
    "negative ratio": ["prune", "--ratio", "-0.5"],
    "multiples of 0": ["prune", "--round-to", "0"],
    "negative channels": ["prune", "--min-channels", "-1"],
    "bits as superscript": ["quantize", "--bits", "²"],
    "5 bits": ["quantize", "--bits", "5"],
    "huge bits": ["quantize", "--bits", HUGE],
    "size as superscript": ["inspect", "--shape", "batch=²"],
    "negative size": ["inspect", "--shape", "batch=-1"],
    "half a size": ["inspect", "--shape", "batch=1.5"],
    "no size": ["inspect", "--shape", "batch="],
    "no name": ["inspect", "--shape", "=3"],
    "huge size": ["inspect", "--shape", f"batch={HUGE}"],
    "size beyond an array": ["inspect", "--shape", "batch=9223372036854775807"],
    "size of nothing": ["inspect", "--shape", "length=3"],
    "profile that falls": ["lower", "--profile", "batch=3:2:1"],
    "profile in arabic": ["lower", "--profile", "batch=1:2:٣"],
    "profile of two": ["lower", "--profile", "batch=1:2"],
    "huge profile": ["lower", "--profile", f"batch=1:2:{HUGE}"],
    "no random data": ["compress", "--data", "random:0"],
    "negative random data": ["compress", "--data", "random:-1"],
    "random data in arabic": ["compress", "--data", "random:٣"],
    "huge random data": ["compress", "--data", f"random:{HUGE}"],
    "no seconds": ["bench", "--seconds", "0"],
    "negative check": ["verify", "--blame-check", "-1"],
    "data with a long name": ["compress", "--data", "x" * 300 + ".npz"],
    "data that is a loop": ["compress", "--data", "loop"],
    "unknown effort": ["compress", "--effort", "ٱ"],
    "unknown target": ["lower", "--target", "\x1b[31m"],
}


@pytest.mark.parametrize("name", AMOUNTS)
def test_bad_amounts(run, folder, name):
    command, option, value = AMOUNTS[name]
    refused(run, folder, [*usage(command), f"{option}={value}"])


@pytest.mark.parametrize("threads", ["٣", "-1", "nan", HUGE])
def test_threads_from_the_environment(run, folder, monkeypatch, threads):
    monkeypatch.setenv("LWQC_THREADS", threads)
    refused(run, folder, [*usage("quantize"), "--data", "d.npz"], "LWQC_THREADS")


# Plans

ENTRY = {"weight": "w8c"}
PLANS: dict[str, Any] = {
    "empty": "",
    "no JSON": "{",
    "an array": "[]",
    "a string": '"plan"',
    "a number": "1",
    "nothing": "null",
    "deep": DEEP,
    "not UTF-8": b"\xff\xfe{\x00}\x00",
    "no text": b"\x00\x01\x02",
    "another version": {"version": 3},
    "a version in words": {"version": "one"},
    "no source": "{}",
    "another model": {"source": {"digest": "0"}},
    "a source of text": {"source": "m.onnx"},
    "an unknown field": {"unknown": 1},
    "a key twice": '{"source": {}, "target": "cpu", "target": "cuda"}',
    "a number beyond 64 bits": {"slice": [{"group": "g", "width": 10**30}]},
    "a number of 400 digits": f'{{"source": {{}}, "version": {HUGE}}}',
    "a negative number of 400 digits": f'{{"source": {{}}, "version": -{HUGE}}}',
    "a range without end": '{"source": {}, "activations": {"x": {"low": -1e999, "high": 1}}}',
    "a range of no number": '{"source": {}, "activations": {"x": {"low": NaN, "high": 1}}}',
    "a range that falls": {"activations": {"x": {"low": 2, "high": 1}}},
    "a range of text": {"activations": {"x": {"low": "a", "high": 1}}},
    "an infinite clamp": '{"source": {}, "floats": {"dtype": "float16", "clamp": Infinity}}',
    "width 0": {"slice": [{"group": "g", "width": 0}]},
    "an unknown stream": {"slice": [{"group": "nowhere", "width": 8, "calibration": "random"}]},
    "an unknown branch": {"remove": [{"name": "nowhere"}]},
    "unknown pairs": {"parallel": [{"first": "a", "second": "b"}]},
    "an unknown site": {"quantize": {"nowhere": ENTRY}},
    "an unknown format": {"quantize": {"w": {"weight": "w9z"}}},
    "a format of 99 bits": {"quantize": {"w": {"weight": "w99c"}}},
    "a format that is a number": {"quantize": {"w": {"weight": 8}}},
    "an unknown method": {"quantize": {"w": {**ENTRY, "method": "magic"}}},
    "a negative rank": {"quantize": {"w": {**ENTRY, "rank": -1}}},
    "a static site without a range": {"quantize": {"w": {**ENTRY, "activation": "static"}}},
    "a site twice": {"quantize": {"w": ENTRY}, "sparse": {"w": {}}},
    "an unknown sparse weight": {"sparse": {"nowhere": {}}},
    "an unknown target": {"target": "abacus"},
    "an unknown rewrite": {"rewrites": ["magic"]},
    "floats that the CPU does not compute in": {"floats": {"dtype": "bfloat16"}},
    "half floats for the CPU": {"floats": {"dtype": "float16"}},
    "clips of an unknown tensor": {"restore": {"clips": {"nowhere": "relu"}}},
    "more folded than may be": {"clean": {"folding": 2**40}},
    "a negative folding": {"clean": {"folding": -1}},
    "an unknown float type": {"floats": {"dtype": "float1"}},
    "an unknown rotation": {"transforms": {"rotations": {"nowhere": 1}}},
    "a negative seed": {"transforms": {"rotations": {"nowhere": -1}}},
    "unknown scales": {"transforms": {"scales": {"nowhere": [1.0]}}},
    "a profile of one": {"profile": {"batch": [1]}},
    "an unknown channel": {
        "prune": {"units": [{"group": "g", "index": 0, "slices": [
            {"initializer": "nowhere", "axis": 0, "indices": [0]}]}]}},
    "an axis that is not there": {
        "prune": {"units": [{"group": "g", "index": 0, "slices": [
            {"initializer": "w", "axis": 7, "indices": [0]}]}]}},
    "an index that is not there": {
        "prune": {"units": [{"group": "g", "index": 0, "slices": [
            {"initializer": "w", "axis": 1, "indices": [32]}]}]}},
    "a negative index": {
        "prune": {"units": [{"group": "g", "index": 0, "slices": [
            {"initializer": "w", "axis": 1, "indices": [-1]}]}]}},
    "channels of which nothing fits": {
        "prune": {"units": [{"group": "g", "index": 0, "slices": [
            {"initializer": "w", "axis": 1, "indices": [0]}]}]}},
}  # fmt: skip


@pytest.mark.parametrize("name", PLANS)
def test_bad_plans(run, folder, name):
    content = PLANS[name]
    if isinstance(content, dict):
        digest = io.model_digest(io.load("m.onnx"))
        content = json.dumps({"source": {"digest": digest}, **content})
    plan = folder / "bad.json"
    plan.write_bytes(content if isinstance(content, bytes) else content.encode())
    try:
        refused(run, folder, ["apply", "m.onnx", "bad.json", "-o", "o.onnx", "--no-verify"])
    finally:
        plan.unlink()


@pytest.mark.parametrize("name", ["pipe", "samples", "loop", "nothing.json", "/dev/zero", "m.onnx"])
def test_what_is_no_plan(run, folder, name):
    refused(run, folder, ["apply", "m.onnx", name, "-o", "o.onnx"], name)


# Recipes

HEAD = 'name = "n"\ndescription = "d"\n'
UNIFORM = HEAD + 'allocator = "uniform"\n'
CHANNELS = HEAD + 'allocator = "channels"\n[prune]\n'
BRANCHES = HEAD + 'allocator = "branches"\n[drop]\n'
RECIPES = {
    "empty": "",
    "no TOML": "name",
    "not UTF-8": b"name = '\xff'",
    "deep": "x = " + DEEP,
    "a key twice": HEAD + HEAD,
    "no allocator": HEAD,
    "an unknown allocator": HEAD + 'allocator = "magic"',
    "an unknown field": UNIFORM + "unknown = 1",
    "5 bits": UNIFORM + "bits = 5",
    "bits without end": UNIFORM + "bits = inf",
    "bits of no number": UNIFORM + "bits = nan",
    "bits beyond 64": UNIFORM + "bits = 100000000000000000000",
    "bits of 400 digits": UNIFORM + f"bits = {HUGE}",
    "a negative rank": UNIFORM + "rank = -1",
    "columns of no number": UNIFORM + "columns = nan",
    "columns without end": UNIFORM + "columns = 1e999",
    "one column and a half": UNIFORM + "columns = 1.5",
    "a section that does not fit": UNIFORM + "[drop]\n",
    "no section": HEAD + 'allocator = "channels"',
    "a ratio of no number": CHANNELS + "ratio = nan",
    "a ratio above 1": CHANNELS + "ratio = 2.0",
    "a negative ratio": CHANNELS + "ratio = -1.0",
    "a ratio of text": CHANNELS + 'ratio = "many"',
    "a share without end": BRANCHES + "share = inf",
    "a share above 1": BRANCHES + "share = 1.5",
    "a divergence below 0": BRANCHES + "share = 0.5\nmax_divergence = -1.0",
    "multiples of 0": HEAD + 'allocator = "streams"\n[slice]\nround_to = 0',
    "a slice of more than all": HEAD + 'allocator = "streams"\n[slice]\nratio = 1.5',
    "an unknown format": HEAD + 'allocator = "knapsack"\nlow = "w9z"',
    "a format of 400 digits": HEAD + f'allocator = "knapsack"\nlow = "w4b{HUGE}"',
}


@pytest.mark.parametrize("name", RECIPES)
def test_bad_recipes(run, folder, name):
    content = RECIPES[name]
    recipe = folder / "bad.toml"
    recipe.write_bytes(content if isinstance(content, bytes) else content.encode())
    try:
        refused(run, folder, [*usage("compress"), "--recipe", "bad.toml"])
    finally:
        recipe.unlink()


@pytest.mark.parametrize("kind", ["pipe", "folder", "loop", "missing"])
def test_what_is_no_recipe(run, folder, kind):
    path = folder / "x.toml"
    make = {"pipe": os.mkfifo, "folder": os.mkdir, "loop": lambda p: p.symlink_to(p)}
    make.get(kind, lambda p: None)(path)
    try:
        refused(run, folder, [*usage("compress"), "--recipe", "x.toml"], "x.toml")
    finally:
        if path.is_dir():
            path.rmdir()
        else:
            path.unlink(missing_ok=True)


# Search logs

LINE = '{"lwqc_search": 1}\n'
LOGS: dict[str, Any] = {
    "empty": "",
    "a text": "hello\n",
    "another version": '{"lwqc_search": 2}\n',
    "an array": "[]\n",
    "no JSON": LINE + "{\n",
    "not UTF-8": LINE.encode() + b"\xff\n",
    "deep": LINE + DEEP + "\n",
    "a line that is a number": LINE + "1\n",
    "a score without a candidate": LINE + '{"k": "joint", "s": 0, "v": 1}\n',
    "a score of text": LINE + '{"k": "joint", "s": 0, "c": [1], "v": "1"}\n',
    "a score in arabic": LINE + '{"k": "joint", "s": 0, "c": [1], "v": "٣"}\n',
    "a stage of text": LINE + '{"k": "joint", "s": "0", "c": [1], "v": 1}\n',
    "a candidate of text": LINE + '{"k": "joint", "s": 0, "c": "1", "v": 1}\n',
    "a candidate of halves": LINE + '{"k": "joint", "s": 0, "c": [0.5], "v": 1}\n',
    "a level of 400 digits": LINE + f'{{"k": "joint", "s": 0, "c": [{HUGE}], "v": 1}}\n',
    "a score of 400 digits": LINE + f'{{"k": "joint", "s": 0, "c": [1], "v": {HUGE}}}\n',
    "a key that is a list": LINE + '{"k": [], "s": 0, "c": [1], "v": 1}\n',
    "a fact without a value": LINE + '{"fact": "model"}\n',
    "a fact that is a list": LINE + '{"fact": [], "value": 1}\n',
    "a key twice": LINE + '{"fact": "model", "value": 1, "value": 2}\n',
    "another model": LINE + '{"fact": "model", "value": "0"}\n',
}


@pytest.mark.parametrize("name", LOGS)
def test_bad_logs(run, folder, name):
    content = LOGS[name]
    log = folder / "o.onnx.search"
    log.write_bytes(content if isinstance(content, bytes) else content.encode())
    budget = ["--data", "d.npz", "--max-size", "0.5", "--resume"]
    try:
        refused(run, folder, [*usage("compress"), *budget], "o.onnx.search")
    finally:
        log.unlink()


@pytest.mark.parametrize("resume", [[], ["--resume"]], ids=["new", "resumed"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "loop", "link", "text"])
def test_a_foreign_log_is_left_alone(run, folder, kind, resume):
    log = folder / "o.onnx.search"
    make = {
        "pipe": os.mkfifo, "folder": os.mkdir, "loop": lambda p: p.symlink_to(p),
        "link": lambda p: p.symlink_to("d.npz"), "text": lambda p: p.write_text("my notes\n"),
    }  # fmt: skip
    make[kind](log)
    try:
        budget = ["--data", "d.npz", "--max-size", "0.5", *resume]
        refused(run, folder, [*usage("compress"), *budget], "o.onnx.search")
    finally:
        if log.is_dir():
            log.rmdir()
        else:
            log.unlink()


# Caches are measured anew where they hold anything odd


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{", DEEP, '{"a": 1}', '{"a": [1]}', '{"a": [1, "x"]}', '{"a": [NaN, 1]}',
     '{"a": [1e999, 1]}', f'{{"a": [{HUGE}, 1]}}', '{"a": [0, 1]}', '{"a": [-1, 1]}'],
)  # fmt: skip
def test_odd_caches_are_nothing(tmp_path, content):
    (tmp_path / "times.json").write_text(content)
    assert _read(tmp_path / "times.json") == {}


def test_a_cache_that_is_a_pipe_is_nothing(folder):
    assert _read(folder / "pipe") == {}


# Outputs

M, D = ["m.onnx"], ["--data", "d.npz"]
OUTPUTS = {
    "the model": ["quantize", *M, "-o", "m.onnx"],
    "the model, spelt otherwise": ["quantize", *M, "-o", "samples/../m.onnx"],
    "the model, behind a link": ["quantize", *M, "-o", "link.onnx"],
    "the model, as a hard link": ["quantize", *M, "-o", "hard.onnx"],
    "the model, read behind a link": ["quantize", "link.onnx", "-o", "m.onnx"],
    "the model's data": ["quantize", "e.onnx", "-o", "weights.bin"],
    "the data": ["quantize", *M, "-o", "d.npz", *D],
    "the data, behind a link": ["quantize", *M, "-o", "link.npz", *D],
    "the data, read behind a link": ["quantize", *M, "-o", "d.npz", "--data", "link.npz"],
    "a sample of a folder": ["quantize", *M, "-o", "samples/one.npz", "--data", "samples"],
    "the recipe": ["compress", *M, "-o", "r.toml", "--recipe", "r.toml"],
    "the plan": ["apply", *M, "p.json", "-o", "p.json"],
    "the metric": ["quantize", *M, "-o", "metrics.py", "--metric", "metrics:raises"],
    "the source": ["quantize", *M, "-o", "sources.py", "--data", "sources:good"],
    "what the source imports": [
        "quantize", *M, "-o", "helper_of_sources.py", "--data", "sources:good"],
    "the plan where the model is": ["quantize", *M, "-o", "o.onnx", "--plan-out", "o.onnx"],
    "the plan there, spelt otherwise": [
        "quantize", *M, "-o", "o.onnx", "--plan-out", "samples/../o.onnx"],
    "the plan over the input": ["quantize", *M, "-o", "o.onnx", "--plan-out", "m.onnx"],
    "the plan over the data": ["quantize", *M, "-o", "o.onnx", "--plan-out", "d.npz", *D],
    "the plan over the recipe": [
        "compress", *M, "-o", "o.onnx", "--plan-out", "r.toml", "--recipe", "r.toml"],
    "the plan over the scores": [
        "compress", *M, "-o", "o.onnx", "--plan-out", "o.onnx.search", "--max-size", "0.5"],
    "the plan over the source": [
        "quantize", *M, "-o", "o.onnx", "--plan-out", "sources.py", "--data", "sources:good"],
    "the plan in a folder": ["quantize", *M, "-o", "o.onnx", "--plan-out", "samples"],
    "the plan nowhere": ["quantize", *M, "-o", "o.onnx", "--plan-out", "no/p.json"],
    "the plan of plan over the model": ["plan", *M, "-o", "m.onnx"],
    "the plan of plan over the recipe": ["plan", *M, "-o", "r.toml", "--recipe", "r.toml"],
    "the page over the data": ["quantize", *M, "-o", "o.onnx", "--report", "d.npz", *D],
    "the page over the plan": [
        "quantize", *M, "-o", "o.onnx", "--report", "p", "--plan-out", "p"],
    "the page where a plan is read": ["apply", *M, "p.json", "-o", "o.onnx", "--report", "p.json"],
    "engines over the model": ["lower", *M, "-o", "o.onnx", "--engines", "m.onnx"],
    "engines over the result": ["lower", *M, "-o", "o.onnx", "--engines", "o.onnx"],
    "the row's first": ["compress", "m-1.onnx", "-o", "m.onnx", "--pareto", "2"],
    "the row's plan": [
        "compress", *M, "-o", "o.onnx", "--pareto", "2", "--plan-out", "o-1.plan.json"],
    "a folder": ["quantize", *M, "-o", "samples"],
    "nowhere": ["quantize", *M, "-o", "no/o.onnx"],
    "below a file": ["quantize", *M, "-o", "m.onnx/o.onnx"],
    "a pipe": ["quantize", *M, "-o", "pipe"],
    "a device": ["quantize", *M, "-o", "/dev/null"],
    "a loop": ["quantize", *M, "-o", "loop"],
    "a long name": ["quantize", *M, "-o", "x" * 300],
    "a plan over the model to convert": ["convert", "sources:good", "-o", "no/o.onnx"],
}  # fmt: skip


@pytest.mark.parametrize("name", OUTPUTS)
def test_bad_outputs(run, folder, name):
    row = folder / "m-1.onnx"
    if name == "the row's first":
        row.write_bytes((folder / "m.onnx").read_bytes())
    try:
        refused(run, folder, OUTPUTS[name])
    finally:
        row.unlink(missing_ok=True)


# The user's code

CODE = {
    "a metric of no number": (["--metric", "metrics:nan"], "nan"),
    "a metric without end": (["--metric", "metrics:infinite"], "inf"),
    "a metric of text": (["--metric", "metrics:text"], "a str; expected a number"),
    "a metric of nothing": (["--metric", "metrics:nothing"], "NoneType"),
    "a metric of several": (["--metric", "metrics:several"], "list"),
    "a metric of imaginary": (["--metric", "metrics:imaginary"], "complex"),
    "a metric of 400 digits": (["--metric", "metrics:huge"], "OverflowError"),
    "a metric that exits": (["--metric", "metrics:exits"], "SystemExit"),
    "a metric that leaves": (["--metric", "metrics:leaves"], "SystemExit: bye"),
    "a metric that raises": (["--metric", "metrics:raises"], "KeyError"),
    "a metric that is a number": (["--metric", "metrics:number"], "not callable"),
    "a metric that exits early": (["--metric", "exits:f"], "SystemExit"),
    "a metric that fails early": (["--metric", "fails:f"], "two lines"),
    "data that exits": (["--data", "sources:exits"], "SystemExit"),
    "data that exits late": (["--data", "sources:exits_late"], "no data for input"),
    "data that exits early": (["--data", "exits:f"], "SystemExit"),
    "data that is a number": (["--data", "sources:number"], "not iterable"),
    "data of texts": (["--data", "sources:texts"], "expected a dict"),
    "a metric, forbidden": (["--no-user-code", "--metric", "metrics:nan"], "--no-user-code"),
    "data, forbidden": (["--no-user-code", "--data", "sources:good"], "--no-user-code"),
    "forbidden afterwards": (["--data", "sources:good", "--no-user-code"], "--no-user-code"),
}


@pytest.mark.parametrize("name", CODE)
def test_bad_user_code(run, folder, name):
    options, word = CODE[name]
    refused(run, folder, [*usage("quantize"), *options], word)


@pytest.mark.parametrize(
    "arguments",
    [
        ["convert", "sources:good", "-o", "o.onnx"],
        ["prune", "m.onnx", "-o", "o.onnx", "--loss", "metrics:nan"],
        ["inspect", "m.onnx", "--branches", "--data", "sources:good"],
        ["verify", "m.onnx", "m.onnx", "--metric", "metrics:nan"],
        ["bench", "m.onnx", "--data", "sources:good"],
        ["plan", "m.onnx", "-o", "p2.json", "--data", "sources:good"],
        ["lower", "m.onnx", "-o", "o.onnx", "--data", "sources:good"],
        ["apply", "m.onnx", "p.json", "-o", "o.onnx", "--data", "sources:good"],
        ["drop", "m.onnx", "-o", "o.onnx", "--data", "sources:good"],
        ["compress", "m.onnx", "-o", "o.onnx", "--data", "sources:good"],
    ],
    ids=lambda a: a[0],
)
def test_no_command_runs_user_code_where_it_is_forbidden(run, folder, arguments):
    refused(run, folder, [*arguments, "--no-user-code"], "--no-user-code does not run")
