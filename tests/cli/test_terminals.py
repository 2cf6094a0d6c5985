"""Names of models and paths are text: whatever they hold, a terminal shows it and does nothing."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import onnx
import pytest

import lwqc
import lwqc.cli.demo
from lwqc.cli.report.console import Console
from lwqc.model.printable import shown

DIGITS = Path(lwqc.cli.demo.__file__).parent / "digits.onnx"
DATA = "tests.hostile_names:calibration"
EVIL = "\x1b[31m[red]\u202e\n:smile:[/bold] \x9b\u200b"


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> Path:
    """The demo model, all of whose names are hostile, in a folder called `[`."""
    proto = onnx.load(DIGITS)
    graph = proto.graph
    for value in (*graph.input, *graph.output, *graph.initializer, *graph.value_info):
        value.name += EVIL
    for number, node in enumerate(graph.node):
        node.name = f"{number}{EVIL}"
        for names in (node.input, node.output):
            names[:] = [name + EVIL if name else "" for name in names]
    folder = tmp_path_factory.mktemp("names") / "[" / "[red]"
    folder.mkdir(parents=True)
    onnx.save(proto, folder / "m\x1b[2J.onnx")
    return folder / "m\x1b[2J.onnx"


def is_text(*texts: str) -> bool:
    """No character does anything but show itself, and lines end."""
    bad = {c for text in texts for c in text.replace("\n", "") if not c.isprintable()}
    assert not bad, bad
    assert not any(c in text for text in texts for c in ("\U0001f604",))
    return True


@pytest.mark.parametrize(
    "arguments",
    [
        ["inspect", "--sites", "--cost"],
        ["inspect", "--groups", "--branches"],
        ["quantize", "--bits", "4", "--details"],
        ["quantize", "--bits", "4", "--max-drop", "0"],
        ["prune", "--ratio", "0.2", "--details"],
        ["drop", "--branches", "1", "--recipe", "finercut", "--details"],
        ["plan", "--recipe", "w8"],
        ["verify", "--blame"],
        ["bench", "--seconds", "0.01"],
        ["compare", "--seconds", "0.01"],
        ["lower", "--details"],
    ],
    ids=" ".join,
)
def test_output_is_text(run, hostile, arguments):
    command, *options = arguments
    out = hostile.with_name("out\x1b[1m.onnx")
    models = [hostile, hostile] if command in ("verify", "bench", "compare") else [hostile]
    if command not in ("inspect", "verify", "bench", "compare"):
        options += ["-o", out]
    code, text, err = run(command, *models, *options)
    assert code in (0, 3), err
    assert is_text(text, err)
    # Markup in names is shown as it is.
    assert "[red]" in text + err


@pytest.mark.parametrize(
    "arguments",
    [
        ["inspect", "no\x1b[2J\u202e.onnx"],
        ["inspect", DIGITS, "--shape", f"{EVIL}=3"],
        ["inspect", DIGITS, f"--{EVIL}"],
        ["quantize", DIGITS, "-o", f"nowhere{EVIL}/x.onnx"],
        ["compress", DIGITS, "-o", "o.onnx", "--data", f"{EVIL}:f"],
        ["compress", DIGITS, "-o", "o.onnx", "--recipe", f"{EVIL}.toml"],
        ["apply", DIGITS, f"{EVIL}.json", "-o", "o.onnx"],
        ["recipes", EVIL],
    ],
    ids=lambda a: a[0],
)
def test_errors_are_text(run, arguments):
    code, _, err = run(*arguments)
    assert code == 2
    assert err.count("\n") == 1
    assert is_text(err)


def test_json_is_ascii(run, hostile):
    code, text, _ = run("inspect", hostile, "--json")
    assert code == 0
    assert text.isascii()
    assert is_text(text)
    assert EVIL in json.loads(text)["inputs"][0]


def test_names_that_are_no_text_are_shown_too():
    assert shown("a\udc80b") == "a\\udc80b"
    assert shown("naïve 模型 [x]") == "naïve 模型 [x]"


def test_every_console_is_ours():
    for file in Path(lwqc.__file__).parent.rglob("*.py"):
        if file.name == "console.py":
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            name = getattr(node, "module", None)
            assert name not in ("rich.console", "rich.markup", "rich"), file


def test_text_is_no_markup(capsys):
    Console().print("[bold]x[/bold] :smile: \x1b[31m")
    assert capsys.readouterr().out == "[bold]x[/bold] :smile: \\x1b[31m\n"
