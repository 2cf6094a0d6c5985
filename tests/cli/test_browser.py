"""Pages of `--report` in a real browser: they load, sort, search, and fit on a telephone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import lwqc.cli.demo
from tests.cli.browser import Browser, opened_browser

DIGITS = Path(lwqc.cli.demo.__file__).parent / "digits.onnx"
PHONE = 400
_PICTURES = "LWQC_PICTURES"
COLUMN = """const cells = arguments[0].querySelectorAll(`tbody tr td:nth-child(${arguments[1]})`);
return Array.from(cells).filter(c => !c.parentElement.hidden).map(c => c.textContent.trim());"""
HEADED = """return Array.from(document.querySelectorAll("section"))
.find(s => s.querySelector("h2").textContent === arguments[0]).id;"""


@pytest.fixture(scope="module")
def browser():
    with opened_browser() as window:
        yield window


@pytest.fixture
def page(run, tmp_path, browser):
    """A page on the demo model in 4 bits."""
    page = tmp_path / "o.html"
    code, _, err = run("quantize", DIGITS, "-o", tmp_path / "o.onnx", "--bits", 4, "--report", page)
    assert code == 0, err
    return page


def column(browser: Browser, chapter: str, number: int) -> list[str]:
    section = browser.run(HEADED, chapter)
    return browser.run(
        COLUMN.replace("arguments[0]", f'document.querySelector("#{section} table")').replace(
            "arguments[1]", str(number)
        )
    )


def test_a_page_sorts_and_searches_and_the_console_is_silent(browser, page):
    browser.open(page)
    section = browser.run(HEADED, "Weights")
    names = column(browser, "Weights", 1)
    before = column(browser, "Weights", 7)
    browser.click(f"#{section} th:nth-child(7) button")
    upward = column(browser, "Weights", 7)
    assert upward != before
    assert upward == ["1.15 kB", "2.56 kB", "36.86 kB", "36.86 kB", "73.73 kB", "147.46 kB",
                      "147.46 kB"]  # fmt: skip
    browser.click(f"#{section} th:nth-child(7) button")
    assert column(browser, "Weights", 7) == upward[::-1]
    browser.click(f"#{section} th:nth-child(1) button")
    assert column(browser, "Weights", 1) == sorted(names)
    assert browser.console() == []


@pytest.mark.parametrize("width", [PHONE, 1100])
def test_a_page_fits_into_its_window(browser, page, width):
    browser.open(page, width=width)
    assert browser.run("return document.documentElement.scrollWidth") <= width
    small = browser.run(
        """return Array.from(document.querySelectorAll("main *")).filter(e => e.children.length == 0
        && e.textContent.trim() && parseFloat(getComputedStyle(e).fontSize) < 11).length"""
    )
    assert small == 0
    assert browser.console() == []


@pytest.mark.parametrize("width", [PHONE, 1100])
def test_charts_of_a_search_fit_too(browser, tmp_path, width):
    """Many candidates and many layers with long names, on a telephone and beside it."""
    from lwqc.cli.report.html.page import Depth, Layer, Mark, Page, Scatter, section
    from lwqc.cli.report.html.render import render

    long = "model.layers.17.self_attn.q_proj.weight/MatMul_output_0" * 3
    marks = [Mark(1e6 * n, 1 / n, long, "front" if n % 5 else "tried") for n in range(1, 200)]
    layers = [Layer(f"{long}{n}", 4.5, 0.1 * (n % 10), long) for n in range(120)]
    own = tmp_path / "search.html"
    charts = (Scatter("size", "error", tuple(marks), 5e7, x_is_bytes=True), Depth(tuple(layers)))
    own.write_text(render(Page(long, (long,), (section("The search", *charts),))))
    browser.open(own, width=width)
    assert browser.run("return document.documentElement.scrollWidth") <= width
    assert browser.run('return document.querySelectorAll("circle:not(.key circle)").length') == 199
    assert browser.run('return document.querySelectorAll(".depth path.gone").length') == 12
    assert browser.console() == []


def test_drawings_unfold_and_zoom(browser, page):
    browser.open(page)
    shown = """return Array.from(document.querySelectorAll("svg.drawing"))
        .map(e => e.checkVisibility() ? e.getBoundingClientRect().width : 0)"""
    assert set(browser.run(shown)) == {0}
    browser.click("button.unfold")
    whole = browser.run(shown)
    assert min(whole) > 0
    browser.run(
        """const zoom = document.querySelector("input[type=range]");
        zoom.value = 200; zoom.dispatchEvent(new Event("input"))"""
    )
    assert browser.run(shown) == pytest.approx([2 * width for width in whole], abs=1)
    browser.click("button.unfold")
    assert set(browser.run(shown)) == {0}
    assert browser.console() == []


def test_colours_follow_the_system(browser, page):
    browser.open(page)
    colours = []
    for scheme in ("dark", "light"):
        browser.prefers(scheme)
        found = browser.run(
            """const own = getComputedStyle(document.body);
            return [own.color, own.backgroundColor]"""
        )
        assert found[0] != found[1]
        colours.append(found)
    assert colours[0] != colours[1]


def test_rows_are_searched_by_their_words(browser, tmp_path):
    from lwqc.cli.report.html.page import Page, section, table
    from lwqc.cli.report.html.render import render

    rows = [(f"layer.{n}", "has few weights" if n % 3 else "is a norm") for n in range(20)]
    own = tmp_path / "rows.html"
    own.write_text(render(Page("rows", (), (section("Left", table(["name", "why"], rows)),))))
    browser.open(own)
    browser.type("input[type=search]", "Norm layer.1")
    assert column(browser, "Left", 1) == ["layer.12", "layer.15", "layer.18"]
    assert browser.run('return document.querySelector("output").textContent') == "3 of 20"
    browser.type("input[type=search]", "nothing")
    assert column(browser, "Left", 1) == []
    assert browser.console() == []


def test_names_of_strangers_do_nothing(browser, tmp_path):
    from lwqc.cli.report.html.page import Lines, Page, section, table
    from lwqc.cli.report.html.render import render
    from tests.cli.test_html_report import EVIL

    own = tmp_path / "evil.html"
    blocks = (table([EVIL, "b"], [(EVIL, EVIL)] * 9), Lines((EVIL,)))
    own.write_text(render(Page(EVIL, (EVIL,), (section(EVIL, *blocks),))))
    browser.open(own)
    assert browser.run("return document.images.length + document.scripts.length") == 1
    assert browser.console() == []


def test_scripts_that_are_not_of_the_page_are_refused(browser, page):
    """What escaping should ever miss does not run: the policy names the one script that may."""
    text = page.read_text().replace("<main>", "<main><script>window.ran = true</script>")
    page.write_text(text)
    browser.open(page)
    assert browser.run("return window.ran === undefined")
    assert any("Content Security Policy" in line for line in browser.console())


def test_a_page_prints_whole(browser, page):
    browser.open(page)
    assert browser.printed().startswith(b"%PDF")
    assert browser.run('return document.querySelectorAll("details:not([open])").length') == 0


@pytest.mark.skipif(_PICTURES not in os.environ, reason=f"writes to the folder ${_PICTURES}")
def test_pictures_of_the_docs(browser, run, tmp_path, monkeypatch):
    """docs/images as they are made: minutes of search. nudenet's detector where it is installed."""
    folder = Path(os.environ[_PICTURES]).resolve()
    models = Path(__file__).parents[2] / "models"
    monkeypatch.chdir(tmp_path)
    Path("glyph_vit.onnx").symlink_to(models / "glyph_vit.onnx")

    def picture(page: str, name: str, **size: int) -> None:
        browser.open(Path(page), **size)
        browser.picture(folder / f"{name}.png")
        assert (folder / f"{name}.png").stat().st_size < 250_000

    data = ["--data", "models.glyphs:calibration", "--metric", "models.glyphs:accuracy"]
    search = ["--max-size", "15%", "--report", "small.html"]
    line = ["compress", "glyph_vit.onnx", "-o", "small.onnx", *data, *search]
    assert run(*line)[0] == 0
    assert run("quantize", "glyph_vit.onnx", "-o", "w8.onnx", *data)[0] == 0
    files = ["glyph_vit.onnx", "w8.onnx", "small.onnx"]
    assert run("compare", *files, *data, "--report", "files.html")[0] == 0
    picture("small.html", "report_glyph_vit", width=900, height=1150)
    picture("files.html", "compare_glyph_vit", width=900, height=900)
    picture("small.html", "report_phone", width=PHONE, height=900)
    browser.open(Path("small.html"), width=900, height=700)
    browser.run('document.querySelector(".scatter").closest("section").scrollIntoView()')
    browser.picture(folder / "report_search.png")
    browser.run(
        """const figure = document.querySelector(".outline").closest("figure");
        for (const part of figure.querySelectorAll("li.bad details, li:nth-child(2) details"))
          part.open = true;
        figure.closest("section").scrollIntoView()"""
    )
    browser.picture(folder / "report_graphs.png")
    texts = ["--data", "models.stdlib_lm:calibration", "--report", "lm.html"]
    assert run("compress", models / "stdlib_lm.onnx", "-o", "lm.onnx", *texts)[0] == 0
    picture("lm.html", "report_stdlib_lm", width=900, height=1150)
    if "LWQC_NUDENET" in os.environ:
        Path("320n.onnx").symlink_to(os.environ["LWQC_NUDENET"])
        Path("photos.npz").symlink_to(os.environ["LWQC_PHOTOGRAPHS"])
        shots = ["--data", "photos.npz", "--report", "detector.html"]
        assert run("compress", "320n.onnx", "-o", "d.onnx", *shots)[0] == 0
        picture("detector.html", "report_320n", width=900, height=1150)
    assert browser.console() == []
