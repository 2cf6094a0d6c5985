"""`--report`: one file that says everything, needs nothing, and in which every text is text."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shlex
from pathlib import Path

import numpy as np
import onnx
import pytest

import lwqc.cli.demo
from lwqc.cli.report.console import Console
from lwqc.cli.report.html.page import Cell, Lines, Page, Scatter, Source, section, table
from lwqc.cli.report.html.render import render
from lwqc.cli.report.terminal import print_search
from lwqc.compile.result import SearchReport
from lwqc.model import io
from tests.build import model, normal
from tests.cli.html_tree import read, rows, sections

DIGITS = Path(lwqc.cli.demo.__file__).parent / "digits.onnx"
DATA = "lwqc.cli.demo.digits:calibration"
EVIL = (
    "<script>alert(1)</script>\"'><img src=x onerror=alert(1)></title></style>\u202e\x1b{{ 7*7 }}"
)


def alone(text: str) -> None:
    """Nothing is loaded from elsewhere, and nothing but the two texts of the page may run."""
    page = read(text)
    assert not [e.tag for e in page if e.tag in ("link", "img", "iframe", "object", "base")]
    links = [e.attributes[k] for e in page for k in ("href", "src") if k in e.attributes]
    assert all(link is not None and link.startswith("#s") for link in links)
    assert not [e for e in page for k in e.attributes if k.startswith("on") or k == "style"]
    (policy,) = (e.attributes["content"] for e in page.all("meta")
                 if "Content-Security-Policy" in e.attributes.values())  # fmt: skip
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    for tag in ("style", "script"):
        (own,) = page.all(tag)
        digest = base64.b64encode(hashlib.sha256(own.text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


@pytest.fixture(scope="module")
def net(tmp_path_factory) -> Path:
    """A small model with a residual branch."""
    path = tmp_path_factory.mktemp("net") / "net.onnx"
    weights = {"w": normal(64, 128), "v": normal(128, 64), "u": normal(64, 64)}
    nodes = [("MatMul", ["x", "w"], "h", {}), ("Relu", ["h"], "r", {}),
             ("MatMul", ["r", "v"], "s", {}), ("Add", ["x", "s"], "t", {}),
             ("MatMul", ["t", "u"], "y", {})]  # fmt: skip
    io.save(model(nodes, weights, {"x": [4, 64]}, ["y"]), path)
    return path


@pytest.fixture(scope="module")
def searched(net, tmp_path_factory):
    """A search on it: its page, and the report as JSON."""
    import sys

    from lwqc import cli

    folder = tmp_path_factory.mktemp("searched")
    out, page, answer = (folder / n for n in ("small.onnx", "small.html", "small.json"))
    line = ["compress", net, "-o", out, "--max-size", "0.15", "--effort", "low",
            "--data", "random:4", "--report", page, "--json"]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch, answer.open("w") as file:
        patch.setattr(sys, "argv", ["lwqc", *map(str, line)])
        patch.setattr(sys, "stdout", file)
        with pytest.raises(SystemExit) as caught:
            cli.main()
    assert caught.value.code == 0
    return page, json.loads(answer.read_text()), line


def test_a_search_is_told_in_chapters(searched):
    path, report, line = searched
    text = path.read_text()
    alone(text)
    found = sections(read(text))
    assert found.keys() >= {
        "What it brought", "What changed, and why", "Along the depth", "Quality", "Sensitivity",
        "The search", "Weights", "Where the time goes", "Before and after", "Again",
    }  # fmt: skip
    (size,) = (row for row in rows(found["What it brought"]) if row[0] == "size" and "met" in row)
    assert size[2].replace(",", "") == f"{report['output_bytes']} bytes"
    named = {row[0] for row in rows(found["Weights"])}
    assert {site["name"] for site in report["sites"]} <= named
    chosen = rows(found["Sensitivity"])[1:]
    assert {kind for _, kind, *_ in chosen} >= set(report["search"]["items"])
    assert shlex.join(["lwqc", *map(str, line)]) in found["Again"].text
    assert json.loads(list(found["Again"].all("pre"))[1].text)["version"] == 2


def test_the_page_of_the_docs_names_every_chapter(searched):
    text = (Path(__file__).parents[2] / "docs" / "report.md").read_text()
    table = text.partition("| --- | --- |\n")[2].partition("\n\n")[0]
    named = [line.split("|")[1].strip() for line in table.splitlines()]
    found = sections(read(searched[0].read_text()))
    assert [name for name in named if name in found] == list(found)
    pictures = re.findall(r"\]\((images/[^)]+)\)", text)
    assert pictures
    assert all((Path(__file__).parents[2] / "docs" / name).is_file() for name in pictures)


def test_the_curve_of_a_search_holds_what_was_tried(searched):
    path, report, _ = searched
    (search,) = (s for name, s in sections(read(path.read_text())).items() if name == "The search")
    points = [e for e in search.all("circle") if list(e.all("title"))]
    looks = [e.attributes["class"] for e in points]
    assert looks.count("start") == looks.count("best") == 1
    assert len(looks) > 5
    assert looks.count("front") >= 1
    (best,) = (e.text for e in points if e.attributes["class"] == "best")
    assert f"{report['search']['best']:.4g}" in best


def test_every_reason_of_the_report_is_on_the_page(run, tmp_path):
    out, page = tmp_path / "o.onnx", tmp_path / "o.html"
    code, text, _ = run("prune", DIGITS, "-o", out, "--ratio", 0.3, "--report", page, "--json")
    assert code == 0
    report = json.loads(text)
    left = {cell for row in rows(sections(read(page.read_text()))["Left as it is"]) for cell in row}
    pruning = report["pruning"]
    reasons = [group["reason"] for group in pruning["groups"] if group["reason"]]
    reasons += [axis[3] for axis in pruning["frozen"]] + [b[1] for b in pruning["barriers"]]
    reasons += [*pruning["notes"], *report["notes"]]
    assert reasons
    assert set(reasons) <= left


@pytest.mark.parametrize(
    ("arguments", "chapter", "words"),
    [
        (["quantize", "--bits", "4"], "Along the depth", "w4b32h"),
        (["quantize", "--bits", "4"], "What changed, and why", "4 bits in blocks of 32 (w4b32h)"),
        (["quantize", "--bits", "mixed", "--avg-bits", "5", "--data", DATA],
         "Sensitivity", "alone in w4b32"),
        (["drop", "--branches", "1", "--recipe", "finercut"], "Structure", "branches removed"),
        (["drop", "--branches", "1", "--recipe", "finercut"], "Along the depth", "removed"),
        (["lower"], "What changed, and why", "rewritten for the runtime: keep a slow"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)  # fmt: skip
def test_each_command_tells_its_own(run, tmp_path, arguments, chapter, words):
    command, *options = arguments
    page = tmp_path / "o.html"
    code, _, err = run(command, DIGITS, "-o", tmp_path / "o.onnx", *options, "--report", page)
    assert code == 0, err
    alone(page.read_text())
    assert words in sections(read(page.read_text()))[chapter].text


def test_graphs_are_drawn_before_and_after(run, tmp_path, net):
    """Each node is a box; what is taken out is dashed, weights of few bits are filled."""
    page = tmp_path / "o.html"
    out = tmp_path / "o.onnx"
    line = ["drop", net, "-o", out, "--branches", 1, "--recipe", "finercut", "--report", page]
    assert run(*line)[0] == 0
    before, after = drawn(page)
    assert [op for op, _ in before] == [n.op_type for n in onnx.load(net).graph.node]
    assert [look for _, look in before] == ["bad", "bad", "bad", "", ""]
    assert [op for op, _ in after] == ["MatMul"]
    assert run("quantize", net, "-o", out, "--bits", 8, "--report", page)[0] == 0
    before, after = drawn(page)
    assert {look for _, look in before} == {""}
    assert {look for op, look in after if "MatMul" in op} == {"note"}


def drawn(page: Path) -> list[list[tuple[str, str]]]:
    """Operators and looks of the boxes of both graphs."""
    chapter = sections(read(page.read_text()))["Before and after"]
    columns = list(chapter.all("ol"))
    return [
        [(next(box.all("text")).text, box.attributes.get("class") or "") for box in column.all("g")]
        for column in columns
    ]


def test_memory_and_flipped_samples_are_told(run, tmp_path):
    page = tmp_path / "o.html"
    line = ["quantize", DIGITS, "-o", tmp_path / "o.onnx", "--bits", 2, "--report", page, "--json"]
    code, text, err = run(*line, "--data", DATA, "--metric", "top1")
    assert code == 0, err
    report, found = json.loads(text), sections(read(page.read_text()))
    assert any(row[0] == "memory" for row in rows(found["What it brought"]))
    flipped = report["flips"]["flipped"]
    assert flipped
    samples = [[str(f["sample"]), "", f["before"], f["after"]] for f in flipped]
    quality = rows(found["Quality"])
    assert all(row in quality for row in samples)
    whole = report["flips"]["whole"]
    assert whole["low"] < whole["after"] - whole["before"] < whole["high"]
    (kept,) = (r for r in quality if len(r) == 5 and r[1] == "largest channel")
    low, high = (float(share.rstrip("%")) for share in kept[4].split(" to "))
    assert low < float(kept[2].rstrip("%")) < high


def test_a_report_on_a_detector_speaks_of_detections(run, tmp_path):
    source, page = tmp_path / "detector.onnx", tmp_path / "o.html"
    weights = {
        "w": normal(64, 3, 3, 3), "v": normal(4, 64, 3, 3) / 9,
        "b": np.array([-2, 0, 1, 2], np.float32), "shape": np.array([0, 4, -1]),
    }  # fmt: skip
    pads = {"pads": [1, 1, 1, 1]}
    nodes = [("Conv", ["image", "w"], "h", pads), ("Relu", ["h"], "r", {}),
             ("Conv", ["r", "v", "b"], "l", pads), ("Sigmoid", ["l"], "p", {}),
             ("Reshape", ["p", "shape"], "scores", {})]  # fmt: skip
    io.save(model(nodes, weights, {"image": [2, 3, 16, 16]}, ["scores"]), source)
    line = ["quantize", source, "-o", tmp_path / "o.onnx", "--bits", "4", "--data", "random:2"]
    code, text, err = run(*line, "--report", page)
    assert code == 0, err
    assert re.search(r"scores: decisions kept: .*detections 9\d\.\d+%", text)
    kept = {
        row[1]: row[2] for row in rows(sections(read(page.read_text()))["Quality"]) if len(row) == 5
    }
    assert kept["detections"].startswith("9")
    assert kept.keys() >= {"strongest place of each class", "ten strongest places"}
    assert not re.search(r"\bkl\b", text + page.read_text(), re.IGNORECASE)


@pytest.mark.parametrize(
    ("measure", "words"),
    [
        ("channels", "judged by the error of the outputs by channel, relative: 0.5 at the start"),
        ("metric", "judged by the loss of detection-agreement against the original: 0.5 at"),
        ("kl", "judged by the distance from what the original predicts (KL divergence): 0.5"),
    ],
)
def test_a_search_is_told_in_words(capsys, measure, words):
    search = SearchReport(
        measure=measure, items={"format": (1, 2)}, start=0.5, best=0.25, effort="low", seed=0,
        generations=1, evaluations=2, seconds=3.0, left_out={},
    )  # fmt: skip
    print_search(search, "detection-agreement against the original", Console())
    assert words in " ".join(capsys.readouterr().out.split())


def test_a_fit_is_told_too(run, tmp_path):
    pytest.importorskip("torch", reason="needs the extra lwqc[torch]")
    page = tmp_path / "o.html"
    line = ["recover", DIGITS, "-o", tmp_path / "o.onnx", "--teacher", DIGITS, "--report", page]
    code, text, err = run(*line, "--data", "random:5", "--steps", "1", "--json")
    assert code == 0, err
    alone(page.read_text())
    found = sections(read(page.read_text()))
    assert json.loads(text)["unchanged"] in found["What changed"].text
    assert "lwqc recover" in found["Again"].text


def test_what_a_step_of_a_build_writes_is_made_again_where_it_is_gone(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("m.onnx").write_bytes(DIGITS.read_bytes())
    Path("b.toml").write_text(
        'model = "m.onnx"\n[[step]]\nrun = "lower"\nverify = false\n'
        'report = "q.html"\noutput = "q.onnx"\n'
    )
    assert run("run", "b.toml")[0] == 0
    assert "lwqc lower m.onnx" in sections(read(Path("q.html").read_text()))["Again"].text
    assert "kept" in run("run", "b.toml")[1]
    Path("q.html").unlink()
    assert "written" in run("run", "b.toml")[1]
    assert Path("q.html").exists()


def test_names_of_strangers_are_text(run, tmp_path):
    proto = onnx.load(DIGITS)
    graph = proto.graph
    for value in (*graph.input, *graph.output, *graph.initializer, *graph.value_info):
        value.name += EVIL
    for number, node in enumerate(graph.node):
        node.name = f"{number}{EVIL}"
        for names in (node.input, node.output):
            names[:] = [name + EVIL if name else "" for name in names]
    hostile, page = tmp_path / "a<b>&c.onnx", tmp_path / "o.html"
    onnx.save(proto, hostile)
    code, _, err = run(
        "quantize", hostile, "-o", tmp_path / "o.onnx", "--bits", 4, "--report", page
    )
    assert code == 0, err
    text = page.read_text()
    alone(text)
    assert "\u202e" not in text
    assert "\x1b" not in text
    assert "<script>alert(1)</script>" in read(text).text  # for the reader it is a name
    assert "{{ 7*7 }}" in read(text).text


def test_every_kind_of_text_on_a_page_is_text():
    marks = [lwqc.cli.report.html.page.Mark(x, 1.0, EVIL, "front") for x in (1.0, 2.0)]
    page = Page(EVIL, (EVIL,), (
        section(EVIL, table([EVIL], [[Cell(EVIL)]] * 9, title=EVIL, caption=EVIL)),
        section(EVIL, Lines((EVIL,), title=EVIL), Source(EVIL, title=EVIL, folded=True)),
        section(EVIL, Scatter(EVIL, EVIL, tuple(marks), title=EVIL, caption=EVIL)),
        section("empty"),
    ))  # fmt: skip
    text = render(page)
    alone(text)
    assert "empty" not in read(text).text


@pytest.mark.parametrize(
    "place", ["o.onnx", "no/such/o.html", "m.onnx"], ids=["output", "nowhere", "model"]
)
def test_a_page_in_a_wrong_place_is_refused_before_any_work(run, tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    Path("m.onnx").write_bytes(DIGITS.read_bytes())
    code, _, err = run("quantize", "m.onnx", "-o", "o.onnx", "--report", place)
    assert code == 2, err
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


def test_a_failed_command_leaves_no_page(run, tmp_path, monkeypatch):
    monkeypatch.setattr(io.Draft, "publish", lambda self: (_ for _ in ()).throw(MemoryError()))
    page = tmp_path / "o.html"
    assert run("quantize", DIGITS, "-o", tmp_path / "o.onnx", "--report", page)[0] == 1
    assert list(tmp_path.iterdir()) == []


def test_a_row_of_models_is_one_page(run, tmp_path, net):
    page = tmp_path / "o.html"
    line = ["compress", net, "-o", tmp_path / "o.onnx", "--max-size", 0.2, "--data", "random:4"]
    code, _, err = run(*line, "--pareto", 2, "--effort", "low", "--report", page)
    assert code in (0, 3), err
    alone(page.read_text())
    found = sections(read(page.read_text()))
    assert [row[0] for row in rows(found["What they bring"])[1:]] == [
        str(tmp_path / f"o-{number}.onnx") for number in (1, 2)
    ]
    assert len(list(found["What they bring"].all("title"))) == 2
    assert len(list(found["The search"].all("title"))) > 5


def test_axes_are_marked_with_round_numbers():
    from lwqc.cli.report.html.axes import Axis

    assert Axis.of([3, 97], 100, may_be_logarithmic=False).ticks == [0, 20, 40, 60, 80, 100]
    assert Axis.of([3, 97], 100, may_be_logarithmic=True).ticks == [5, 10, 20, 50, 100]
    assert Axis.of([0.0002, 3], 100, may_be_logarithmic=True).ticks == pytest.approx(
        [0.001, 0.01, 0.1, 1]
    )
    one = Axis.of([5.0], 100, may_be_logarithmic=True)
    assert one.low < 5 < one.high
    assert np.isfinite(one.at(5))
    assert re.fullmatch(r"[\d.]+", str(one.at(5)))
