"""`lwqc compare`: files of any tool, what they hold, compute and take, as text, JSON and HTML."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

import lwqc.cli.demo
from lwqc.model import io
from tests.build import model, normal
from tests.cli.html_tree import read, rows, sections
from tests.cli.test_html_report import EVIL, alone

DIGITS = Path(lwqc.cli.demo.__file__).parent / "digits.onnx"
DATA = ["--data", "lwqc.cli.demo.digits:calibration"]
QUICK = ["--seconds", "0.01"]


@pytest.fixture
def small(run, tmp_path) -> Path:
    out = tmp_path / "small.onnx"
    assert run("quantize", DIGITS, "-o", out, "--bits", 4, "--no-verify")[0] == 0
    return out


@pytest.fixture
def other(tmp_path) -> Path:
    """A model of other inputs and outputs."""
    out = tmp_path / "other.onnx"
    net = model([("MatMul", ["x", "w"], "y", {})], {"w": normal(64, 64)}, {"x": [2, 64]}, ["y"])
    io.save(net, out)
    return out


def test_files_are_told_side_by_side(run, small):
    metric = ["--metric", "lwqc.cli.demo.digits:accuracy"]
    code, text, err = run("compare", DIGITS, small, DIGITS, *DATA, *metric, *QUICK, "--json")
    assert code == 0, err
    found = json.loads(text)
    first, second, third = found["files"]
    assert [f["size_bytes"] for f in (first, second)] == [
        DIGITS.stat().st_size, small.stat().st_size]  # fmt: skip
    assert first["operators"] == third["operators"]
    assert first["operators"]["Conv"] == 6
    assert first["nodes"] == len(onnx.load(DIGITS).graph.node)
    assert first["parameters"] == 111_818
    assert set(first["stored"]) == {"float", "int64"}
    assert second["stored"]["uint8"]["size_bytes"] > 0
    assert third["drop"] == 0
    assert 0 < second["drop"] < 1
    assert first["metric"] == third["metric"] >= second["metric"]
    times = [list(f["latencies"].values()) for f in found["files"]]
    assert all(t["median_ms"] > 0 for (t,) in times)
    assert [f["failed"] for f in found["files"]] == ["", "", ""]


def test_a_file_that_does_not_fit_is_told_and_the_others_are_compared(run, small, other):
    code, text, err = run("compare", DIGITS, other, small, *QUICK)
    assert code == 0, err
    assert "other.onnx:therunfailed" in "".join(text.split())
    code, text, _ = run("compare", DIGITS, other, small, *QUICK, "--json")
    _, second, third = json.loads(text)["files"]
    assert second["operators"] == {"MatMul": 1}
    assert second["divergence"] == second["latencies"] == {}
    assert third["failed"] == ""
    assert third["drop"] > 0


def test_outputs_of_other_names_are_not_compared(run, tmp_path):
    renamed = onnx.load(DIGITS)
    for names in (*(n.output for n in renamed.graph.node), *(n.input for n in renamed.graph.node)):
        names[:] = ["scores" if name == "logits" else name for name in names]
    renamed.graph.output[0].name = "scores"
    onnx.save(renamed, tmp_path / "renamed.onnx")
    code, text, _ = run("compare", DIGITS, tmp_path / "renamed.onnx", *QUICK, "--json")
    second = json.loads(text)["files"][1]
    assert code == 0
    assert "its outputs are scores, and none is of the first's, logits" in second["failed"]
    assert second["latencies"]


def test_the_page_holds_what_the_terminal_shows(run, small, tmp_path):
    page = tmp_path / f"{EVIL.replace('/', '')[:40]}.html"
    code, _, err = run("compare", DIGITS, small, *QUICK, "--report", page)
    assert code == 0, err
    alone(page.read_text())
    found = sections(read(page.read_text()))
    cells = rows(found["Side by side"])
    assert ["Conv", "6", "6"] in cells
    assert any(row[:2] == [str(small), "logits"] for row in cells)
    assert "lwqc compare" in found["Again"].text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([DIGITS], "needs at least two files"),
        ([DIGITS, DIGITS, "--seconds", "0"], "expected a time above 0"),
        ([DIGITS, "none.onnx"], "none.onnx"),
        ([DIGITS, "copy.onnx", "--report", "copy.onnx"], "is read as an input"),
    ],
    ids=["one", "no time", "missing", "over a model"],
)
def test_mistakes_are_told_in_a_line(run, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    Path("copy.onnx").write_bytes(DIGITS.read_bytes())
    code, _, err = run("compare", *arguments)
    assert code == 2
    assert words in err
    assert len(err.splitlines()) == 1
    assert Path("copy.onnx").read_bytes() == DIGITS.read_bytes()
