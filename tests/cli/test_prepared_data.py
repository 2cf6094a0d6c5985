"""Data that is prepared, from the command line: metrics, plans that replay, errors in a line."""

import json
from pathlib import Path

import numpy as np
import pytest

from lwqc.cli.pipeline.content import facts
from lwqc.cli.pipeline.document import SHARED
from lwqc.model import io
from lwqc.plans.preprocess import _READERS, FITS
from lwqc.runtime.metrics.named import NAMED
from tests.build import model, normal
from tests.sources import flat, save_image

pytest.importorskip("PIL", reason="images need pillow, of the extra lwqc[data]")
DOCS = Path(__file__).parent.parent.parent / "docs"
SAID = "range=0..1,size=8"


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A classifier, and images of its two classes."""
    weights = {"w1": normal(192, 64, scale=0.1), "w2": normal(64, 2, seed=1)}
    nodes = [
        ("Flatten", ["image"], "f", {}),
        ("MatMul", ["f", "w1"], "h", {}),
        ("Relu", ["h"], "r", {}),
        ("MatMul", ["r", "w2"], "y", {}),
    ]
    io.save(model(nodes, weights, {"image": ["batch", 3, 8, 8]}, ["y"]), tmp_path / "m.onnx")
    random = np.random.default_rng(0)
    for i in range(8):
        noise = random.integers(0, 100, (8, 8, 3))
        color = (100, 0, 0) if i % 2 else (0, 0, 100)
        save_image(tmp_path / "photos" / "ab"[i % 2] / f"{i}.png", flat(color, 8, 8) + noise)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_metric_on_folders_and_a_plan_that_replays(files, run):
    given = ["--data", "photos", "--preprocess", SAID]
    code, out, _ = run("compress", "m.onnx", "-o", "a.onnx", *given, "--metric", "top1", "--json",
                       "--recipe", "w8a8-static", "--plan-out", "p.json")  # fmt: skip
    assert code == 0
    assert json.loads(out)["metric"] == "top1 against the labels"
    made = json.loads((files / "p.json").read_text())["data"]["preprocess"]
    assert f"prepared by {made}" in run("plan", "p.json", "--text")[1].replace("\n", " ")
    assert made.startswith("size=8x8,fit=stretch,resize=bilinear,color=rgb,layout=nchw,range=0..1")
    assert run("apply", "m.onnx", "p.json", "-o", "b.onnx", "--data", "photos")[0] == 0
    assert (files / "a.onnx").read_bytes() == (files / "b.onnx").read_bytes()
    code, _, err = run("apply", "m.onnx", "p.json", "-o", "c.onnx", "--data", "photos",
                       "--preprocess", "range=-1..1")  # fmt: skip
    assert code == 2
    assert "it was prepared by --preprocess size=8x8" in err
    assert "here by --preprocess size=8x8,fit=stretch" in err
    assert not (files / "c.onnx").exists()


def test_a_plan_names_no_file_that_is_read(files, run):
    given = ["--data", "photos", "--preprocess", SAID]
    assert run("plan", "m.onnx", "-o", "p.json", *given, "--recipe", "w8")[0] == 0
    plan = json.loads((files / "p.json").read_text())
    for stranger in ("/etc/passwd.toml", "range=0..1,classes=/dev/zero"):
        plan["data"]["preprocess"] = stranger
        (files / "p.json").write_text(json.dumps(plan))
        code, _, err = run("apply", "m.onnx", "p.json", "-o", "b.onnx", "--data", "photos")
        assert code == (2 if "toml" in stranger else 0), err
        assert "cannot read" not in err


def test_mistakes_are_a_line(files, run):
    for said, word in (("", "write what pixels become"), ("size=9,range=0..1", "takes size=8x8")):
        code, _, err = run("compress", "m.onnx", "-o", "o.onnx", "--data", "photos",
                           "--preprocess", said)  # fmt: skip
        assert (code, err.count("\n")) == (2, 1)
        assert word in err
    code, _, err = run("compress", "m.onnx", "-o", "o.onnx", "--preprocess", SAID)
    assert code == 2
    assert "size: says nothing about random data" in err
    code, _, err = run("compress", "m.onnx", "-o", "photos/b/1.png", "--data", "photos",
                       "--preprocess", SAID)  # fmt: skip
    assert code == 2
    code, _, err = run("verify", "m.onnx", "m.onnx", "--metric", "top5")
    assert code == 2
    assert "top5: is no metric" in err


def test_outputs_take_no_place_of_what_is_read(files, run):
    (files / "classes.onnx").write_text("a\nb\n")
    before = (files / "classes.onnx").read_bytes()
    code, _, err = run("compress", "m.onnx", "-o", "classes.onnx", "--data", "photos",
                       "--preprocess", f"{SAID},classes=classes.onnx")  # fmt: skip
    assert code == 2
    assert "classes.onnx" in err
    assert (files / "classes.onnx").read_bytes() == before


def test_builds_know_files_that_preprocessing_names(files):
    from lwqc.cli.pipeline.document import read_document
    from lwqc.cli.pipeline.steps import resolve

    assert "preprocess" in SHARED
    (files / "c.txt").write_text("a\nb\n")
    (files / "pre.toml").write_text('range = "0..1"\nclasses = "c.txt"\n')
    (files / "build.toml").write_text(
        'model = "m.onnx"\ndata = "photos"\npreprocess = "pre.toml"\n'
        '[[step]]\nrun = "compress"\noutput = "o.onnx"\n'
    )
    from lwqc.cli.pipeline.commands import commands
    from lwqc.cli.running import app

    def now():
        build = resolve(files / "build.toml", read_document(files / "build.toml"), commands(app))
        return facts(build.steps[0], ["m.onnx"])

    first = now()
    assert {"content of c.txt", "content of pre.toml", "content of photos"} <= first.keys()
    (files / "c.txt").write_text("b\na\n")
    assert now()["content of c.txt"] != first["content of c.txt"]


def test_a_fit_has_feeds_to_hold_back(files):
    """Eight images are eight feeds then, rather than one batch."""
    from lwqc.compile.recover import _data

    options = {"data": "photos", "preprocess": SAID}
    assert len(list(_data(io.load("m.onnx"), options))) == 8


def test_the_page_tells_of_every_key_and_metric():
    page = (DOCS / "data.md").read_text()
    for key in (*_READERS, *FITS, "fill.INPUT"):
        assert f"`{key}" in page or key == "fit", key
    for name in NAMED:
        assert f"`{name}`" in page


def test_the_example_of_the_page(files, run):
    page = (DOCS / "data.md").read_text()
    (files / "preprocess.toml").write_text(page.split("```toml\n")[1].partition("```")[0])
    wide = model(
        [("GlobalAveragePool", ["x"], "p", {}), ("Flatten", ["p"], "y", {})],
        {},
        {"x": ["batch", 3, 320, 320]},
        ["y"],
    )
    io.save(wide, files / "wide.onnx")
    text = page.split("--preprocess ")[1].split("\n")[0]
    outs = [
        run("verify", "wide.onnx", "wide.onnx", "--data", "photos", "--preprocess", said, "--json")
        for said in (text, "preprocess.toml")
    ]
    assert [code for code, *_ in outs] == [0, 0], outs
