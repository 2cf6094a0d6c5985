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
    assert browser.run('return document.querySelectorAll(".outline details[open]").length') > 0


@pytest.mark.skipif(_PICTURES not in os.environ, reason=f"writes to the folder ${_PICTURES}")
def test_pictures_of_the_docs(browser, run, tmp_path, monkeypatch):
    """docs/images as they are made: minutes of search."""
    folder = Path(os.environ[_PICTURES]).resolve()
    models = Path(__file__).parents[2] / "models"
    monkeypatch.chdir(tmp_path)
    Path("glyph_vit.onnx").symlink_to(models / "glyph_vit.onnx")
    data = ["--data", "models.glyphs:calibration", "--metric", "models.glyphs:accuracy"]
    search = ["--max-size", "15%", "--report", "small.html"]
    line = ["compress", "glyph_vit.onnx", "-o", "small.onnx", *data, *search]
    assert run(*line)[0] == 0
    assert run("quantize", "glyph_vit.onnx", "-o", "w8.onnx", *data)[0] == 0
    files = ["glyph_vit.onnx", "w8.onnx", "small.onnx"]
    assert run("compare", *files, *data, "--report", "files.html")[0] == 0
    for page, height, name in (("small.html", 1150, "report"), ("files.html", 900, "compare")):
        browser.open(Path(page), width=900, height=height)
        picture = folder / f"{name}_glyph_vit.png"
        browser.picture(picture)
        assert picture.stat().st_size < 200_000
    browser.open(Path("small.html"), width=PHONE, height=900)
    browser.picture(folder / "report_phone.png")
    browser.open(Path("small.html"), width=900, height=700)
    browser.run('document.querySelector(".scatter").closest("section").scrollIntoView()')
    browser.picture(folder / "report_search.png")
    assert browser.console() == []
