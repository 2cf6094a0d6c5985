"""Every command that README and the pages show is one that lwqc takes; quick ones are run."""

from __future__ import annotations

import shlex
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import typer

import lwqc
from lwqc.cli import app
from lwqc.cli.demo.digits import calibration
from lwqc.model import user_code
from tests.doc_pages import DOCS, TEXTS, commands, mentioned

GENERATED = ("commands.md", "api.md")  # by the code itself, see tests/cli/test_reference.py
WRITTEN = [page for page in TEXTS if page.name not in GENERATED]
DEMO = Path(lwqc.__file__).parent / "cli" / "demo" / "digits.onnx"
# What looks at a model or at lwqc; in minutes, or on other files, other tests do so.
QUICK = ("inspect", "passes", "recipes", "extensions", "opt", "verify")
ELSEWHERE = {"--blame", "--verify-each", "images"}


@pytest.fixture
def untouched():
    """Some options hold for the process once they are parsed."""
    yield
    user_code.allow()


@cache
def program():
    """The parser of all commands."""
    return typer.main.get_command(app)


def fault(words: list[str], *, whole: bool = True) -> str:
    """What the command line does not take of a command; "" where it takes it. Nothing is run.

    whole: arguments that it needs are there.
    """
    root = program()
    known = {text: option for option in root.params for text in option.opts}
    words = [word for word in words if word != "--help"]
    while words and words[0].startswith("-"):  # those of the program, whose callbacks do things
        if words[0] not in known:
            return f"no option {words[0]}"
        words = words[1 if known[words[0]].is_flag else 2 :]
    if not words or words == ["COMMAND"]:
        return ""
    if words[0] not in root.commands:
        return f"no command {words[0]}"
    try:
        root.commands[words[0]].make_context(words[0], words[1:])
    except typer.BadParameter.__bases__[0] as error:
        said = error.format_message()
        part = said.startswith("Missing ") or said.endswith("requires an argument.")
        return "" if part and not whole else said
    return ""


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: page.stem)
def test_commands_and_options_are_there(page, untouched):
    wrong = {shlex.join(words): fault(words[1:]) for words in commands(page)}
    wrong |= {shlex.join(words): fault(words[1:], whole=False) for words in mentioned(page)}
    assert {line: said for line, said in wrong.items() if said} == {}


def test_what_is_not_there_is_found(untouched):
    assert "--ratoi" in fault(["prune", "m.onnx", "-o", "o.onnx", "--ratoi", "0.3"])
    assert fault(["purne", "m.onnx"]) == "no command purne"
    assert "Missing" in fault(["prune", "m.onnx"])
    assert fault(["--limt", "run=1s", "prune"]) == "no option --limt"
    assert fault(["prune", "m.onnx"], whole=False) == ""
    assert "few" in fault(["quantize", "m.onnx", "-o", "o.onnx", "--width", "few"])
    assert "m2.onnx" in fault(["quantize", "m.onnx", "m2.onnx", "-o", "o.onnx"])
    assert sum(len(commands(page)) for page in WRITTEN) > 100
    assert sum(len(mentioned(page)) for page in WRITTEN) > 100


def quick() -> list[str]:
    """Commands that look at a model, of all pages whose own test does not run them."""
    others = {"concepts.md", "writing-a-pass.md", *(p.name for p in (DOCS / "guides").iterdir())}
    lines = [words for page in WRITTEN if page.name not in others for words in commands(page)]
    return list(
        dict.fromkeys(
            shlex.join(words[1:])
            for words in lines
            if words[1:] and words[1] in QUICK and ELSEWHERE.isdisjoint(words)
        )
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files under the names that the pages use: small ones."""
    where = tmp_path_factory.mktemp("pages")
    np.savez(where / "samples.npz", image=next(calibration())["image"][:16])
    for name in ("model", "original", "small", "compressed", "tiny", "pruned", "big"):
        shutil.copy(DEMO, where / f"{name}.onnx")
    shutil.copy(
        Path(lwqc.__file__).parent / "plans" / "recipes" / "obspa.toml", where / "mine.toml"
    )
    return where


@pytest.mark.parametrize("line", quick())
def test_quick_commands_run(line, folder, run, monkeypatch):
    monkeypatch.chdir(folder)
    code, out, err = run(*shlex.split(line))
    assert code == 0, err
    assert out or err


def test_every_concept_has_a_command_that_runs(folder, run, monkeypatch):
    monkeypatch.chdir(folder)
    page = DOCS / "concepts.md"
    sections = page.read_text().split("\n## ")[1:]
    assert [section.partition("\n")[0] for section in sections] == [
        "Model", "Site", "Group", "Branch", "Plan", "Form", "Target", "Loss", "Promise", "Budget",
    ]  # fmt: skip
    assert all("\n```\nlwqc " in section for section in sections)
    for words in commands(page):
        code, out, err = run(*words[1:])
        assert code == 0, f"{shlex.join(words)}: {err}"
        assert out or err
