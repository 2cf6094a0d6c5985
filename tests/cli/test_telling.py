"""What a command tells: shares in percent, its version, whole names, `-q` and `-v`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

import lwqc
import lwqc.cli.demo
from lwqc.cli import telling
from lwqc.errors import InputError
from lwqc.plans.bounds import BYTES, Bound
from lwqc.plans.option_texts import parse_shares

DIGITS = Path(lwqc.cli.demo.__file__).parent / "digits.onnx"
SIZE = Bound("size", BYTES, "a size such as 20MB")
LONG = "a_layer_with_a_very_long_name." * 6


def test_a_bound_may_be_in_percent():
    assert SIZE.read("30%") == SIZE.read("0.3") == SIZE.read(" 30 % ")
    assert SIZE.read("100%").value == 1
    for text in ("130%", "0%", "%", "3%%", "30%MB"):
        with pytest.raises(InputError, match="size"):
            SIZE.read(text)


def test_shares_by_group_may_be_in_percent():
    assert parse_shares(["a=30%", "b=0.3"]) == {"a": 0.3, "b": 0.3}
    with pytest.raises(InputError, match="expected GROUP=share"):
        parse_shares(["a=%"])


@pytest.mark.parametrize(
    "arguments",
    [
        ["prune", "--ratio", "20%", "--no-verify"],
        ["drop", "--branches", "50%", "--recipe", "finercut", "--no-verify"],
        ["lower", "--max-drop", "1%"],
    ],
    ids=lambda a: a[0],
)
def test_a_share_in_percent_is_the_same_number(run, tmp_path, arguments):
    command, *options = arguments
    plain = [f"{float(o[:-1]) / 100:g}" if o.endswith("%") and o != "50%" else o for o in options]
    plans = []
    for number, own in enumerate((options, plain)):
        plan = tmp_path / f"{number}.json"
        code, _, err = run(command, DIGITS, "-o", tmp_path / "o.onnx", *own, "--plan-out", plan)
        assert code == 0, err
        plans.append(json.loads(plan.read_text()))
    assert plans[0] == plans[1]


def test_what_is_no_share_is_not_read_in_percent(run, tmp_path):
    code, _, err = run("bench", DIGITS, "--seconds", "5%")
    assert code == 2
    assert "'5%' is not a finite number" in err


def test_the_version_is_told(run):
    assert run("--version") == (0, f"lwqc {lwqc.__version__}\n", "")


def test_names_are_whole_where_the_output_is_no_terminal(tmp_path):
    """In a process of its own: pytest replaces the streams that are looked at."""
    proto = onnx.load(DIGITS)
    for tensor in proto.graph.initializer:
        for node in proto.graph.node:
            node.input[:] = [LONG + n if n == tensor.name else n for n in node.input]
        tensor.name = LONG + tensor.name
    model = tmp_path / "long.onnx"
    onnx.save(proto, model)
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "FORCE_COLOR")}
    done = subprocess.run(
        [sys.executable, "-m", "lwqc.cli", "inspect", model],
        capture_output=True, text=True, encoding="utf-8",
        env={**environment, "PYTHONIOENCODING": "utf-8"}, check=True,
    )  # fmt: skip
    assert all(LONG + t.name.removeprefix(LONG) in done.stdout for t in proto.graph.initializer
               if t.name.endswith("weight"))  # fmt: skip
    assert max(map(len, done.stdout.splitlines())) < 2000


def test_kernels_are_called_as_the_docs_call_them(run, tmp_path):
    page = tmp_path / "o.html"
    line = ["quantize", DIGITS, "-o", tmp_path / "o.onnx", "--bits", 4, "--details"]
    _, text, _ = run(*line, "--report", page)
    docs = (Path(__file__).parents[2] / "docs" / "index.md").read_text()
    assert '"Unpacked at load": ' in docs
    for told in (text, page.read_text()):
        assert "unpacked at load" in " ".join(told.split())
        assert "Folded" not in told


def test_a_quiet_command_tells_errors_and_what_was_asked_for(run, tmp_path):
    line = ["quantize", DIGITS, "-o", tmp_path / "o.onnx", "-q"]
    assert run(*line) == (0, "", "")
    code, text, err = run(*line, "--json")
    assert (code, err) == (0, "")
    assert json.loads(text)["output"] == str(tmp_path / "o.onnx")
    code, text, err = run(*line, "--max-drop", "0")
    assert (code, text) == (3, "")
    assert "constraint not met" in err
    assert run("quantize", "none.onnx", "-o", tmp_path / "o.onnx", "-q")[2].startswith("lwqc: ")
    assert run("quantize", DIGITS, "-o", tmp_path / "o.onnx")[1] != ""  # and the next one speaks


def test_a_verbose_command_tells_its_stages_and_sites(run, tmp_path):
    code, text, err = run("quantize", DIGITS, "-o", tmp_path / "o.onnx", "--bits", "mixed",
                          "--avg-bits", "5", "-v")  # fmt: skip
    assert code == 0
    assert "sensitivity: " in err
    assert "Sites" in text


def test_stages_are_told_at_their_start_and_every_few_seconds(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(telling.time, "monotonic", lambda: now[0])
    report = telling.stage_lines()
    for second in range(8):
        now[0] = float(second)
        report("encoding", second, 8)
        report("inner\x1b[2J", second, 2)
    told = capsys.readouterr().err.splitlines()
    assert [line.split()[0] for line in told] == ["0.0", "0.0", "3.0", "6.0"]
    assert "\\x1b" in told[1]
