"""Results in a notebook: a line as text, a small table as HTML, and types for its editor."""

from __future__ import annotations

import zipfile
from importlib import resources

import pytest

import lwqc
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
