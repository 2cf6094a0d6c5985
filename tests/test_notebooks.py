"""Results in a notebook: a line as text, a small table as HTML, and types for its editor."""

from __future__ import annotations

import sys
import time
import zipfile
from importlib import resources
from types import ModuleType, SimpleNamespace

import pytest

import lwqc
from lwqc.model import notebook
from tests.build import model, normal
from tests.cli.html_tree import read, rows

EVIL = "<script>alert(1)</script>\u202e\x1b"
LONGEST = 500  # characters of a repr


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """One of each kind, of a model whose names are hostile."""
    out = tmp_path_factory.mktemp("notebook") / "o.onnx"
    net = model([("MatMul", ["x", "w"], "y", {})], {"w": normal(256, 256)}, {"x": [4, 256]}, ["y"])
    net.graph.inputs[0].name = net.graph.inputs[0].name + EVIL
    done = lwqc.quantize(net, bits=4)
    report = done.save(out, verify=False)
    return {"Chainable": done, "Report": report, "Plan": done.plan, "Inspection": lwqc.inspect(net)}


@pytest.mark.parametrize("kind", ["Chainable", "Report", "Plan", "Inspection"])
def test_results_are_told_in_a_line_and_in_a_table(results, kind):
    one = results[kind]
    assert repr(one).startswith(f"<{kind}: model=")
    assert repr(one) == str(one)
    assert len(repr(one)) < LONGEST
    assert repr(one).isprintable()
    table = read(one._repr_html_())
    assert not list(table.all("script"))
    assert {tag.tag for tag in table} == {"table", "tr", "th", "td"}
    facts = ", ".join(f"{name}={text}" for name, text in rows(table))
    assert repr(one) == f"<{kind}: {facts}>"


def test_hostile_names_are_shown(results):
    assert "<script>alert(1)</script>\\u202e\\x1b" in repr(results["Inspection"])
    assert "<script>" not in results["Inspection"]._repr_html_()


def test_a_fit_is_told_too():
    pytest.importorskip("torch", reason="needs the extra lwqc[torch]")
    net = model([("MatMul", ["x", "w"], "y", {})], {"w": normal(8, 8)}, {"x": [4, 8]}, ["y"])
    done = lwqc.recover(net, teacher=net, data="random:5", steps=1)
    assert "teacher=teacher" in repr(done)
    assert repr(done).startswith("<Recovered: model=model, ")
    assert repr(done.report).startswith("<RecoverReport: model=model, ")
    assert len(repr(done)) < LONGEST


class Cell:
    """What IPython's `display` shows below a cell, in the order of the drawings."""

    def __init__(self):
        self.drawn, self.ids = [], []

    def display(self, data, *, raw, display_id):
        assert raw
        self.ids.append(display_id)
        self.drawn.append(data)
        return self

    def update(self, data, *, raw):
        assert raw
        self.drawn.append(data)


@pytest.fixture
def cell(monkeypatch):
    """A notebook, as far as lwqc looks at it."""
    shown = Cell()
    package, display = ModuleType("IPython"), ModuleType("IPython.display")
    package.get_ipython = lambda: SimpleNamespace(kernel="of a cell")
    display.display = shown.display
    monkeypatch.setitem(sys.modules, "IPython", package)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.setattr(notebook, "_SECONDS", 0.01)
    return shown


def test_a_notebook_shows_one_line_that_is_updated_in_place(cell):
    net = model([("MatMul", ["x", "w"], "y", {})], {"w": normal(64, 64)}, {"x": [4, 64]}, ["y"])
    done = lwqc.quantize(net, bits=8)
    assert cell.ids == [True]
    assert cell.drawn[-1] == {"text/plain": "", "text/html": ""}
    assert "opening" in cell.drawn[0]["text/plain"]
    line = read(cell.drawn[0]["text/html"])
    assert {tag.tag for tag in line} == {"div", "progress"}
    done.lower(target="cpu")
    assert cell.ids == [True, True]
    for off in (False, lambda *stage: None):
        lwqc.quantize(net, bits=8, progress=off)
    lwqc.quantize(net, bits=8, progress=lambda *stage: None).lower(target="cpu")
    assert cell.ids == [True, True]


def test_stages_are_in_the_line(cell):
    with notebook.notebook_line() as line:
        line("deciding", 1, 4)
        line(EVIL, 1, 2)
        for _ in range(500):
            if "deciding" in cell.drawn[-1]["text/plain"]:
                break
            time.sleep(0.01)
        last = cell.drawn[-1]
    assert "deciding 1 of 4: <script>alert(1)</script>\\u202e\\x1b 1 of 2" in last["text/plain"]
    assert not list(read(last["text/html"]).all("script"))


def test_nothing_is_shown_where_there_is_no_notebook(cell, monkeypatch):
    monkeypatch.setattr(sys.modules["IPython"], "get_ipython", lambda: SimpleNamespace())
    with notebook.notebook_line() as line:
        assert line is None
    monkeypatch.delitem(sys.modules, "IPython")
    with notebook.notebook_line() as line:
        assert line is None
    assert cell.drawn == []


def test_the_package_is_typed():
    assert (resources.files("lwqc") / "py.typed").is_file()


def test_the_wheel_holds_types_and_pages(tmp_path):
    wheel = pytest.importorskip("hatchling.builders.wheel", reason="needs hatchling")
    from tests.test_layers import ROOT

    (built,) = wheel.WheelBuilder(str(ROOT.parent)).build(
        directory=str(tmp_path), versions=["standard"]
    )
    names = zipfile.ZipFile(built).namelist()
    assert "lwqc/py.typed" in names
    pages = {f"lwqc/cli/report/html/page.{kind}" for kind in ("html", "css", "js")}
    assert pages <= set(names)
