"""Searches from the command line."""

from __future__ import annotations

import json

import pytest

from lwqc.cli import main
from lwqc.decide.allocators.evolutionary import Settings
from lwqc.decide.search.control import EFFORTS
from tests.decide.search.searched import DATA, DIGITS


@pytest.fixture(autouse=True)
def quick(monkeypatch) -> None:
    monkeypatch.setitem(EFFORTS, "low", Settings(generations=2, offspring=4, survivors=(2,)))


def run(monkeypatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["lwqc", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_one_model_within_a_size(tmp_path, monkeypatch, capsys) -> None:
    output = tmp_path / "out.onnx"
    options = ("--data", DATA, "--max-size", "0.15", "--effort", "low")
    assert run(monkeypatch, "compress", DIGITS, "-o", output, *options) == 0
    shown = capsys.readouterr().out
    assert "search:" in shown
    assert "generations" in shown
    assert output.stat().st_size <= 0.15 * DIGITS.stat().st_size
    assert not (tmp_path / "out.onnx.search").exists()


def test_a_row_of_models(tmp_path, monkeypatch, capsys) -> None:
    output = tmp_path / "out.onnx"
    options = ("--data", DATA, "--max-size", "0.12", "--effort", "low", "--pareto", "2", "--json")
    assert run(monkeypatch, "compress", DIGITS, "-o", output, *options) == 0
    reports = json.loads(capsys.readouterr().out)
    files = [tmp_path / "out-1.onnx", tmp_path / "out-2.onnx"]
    assert [r["output_bytes"] for r in reports] == [f.stat().st_size for f in files]
    assert all((tmp_path / f"out-{n}.plan.json").exists() for n in (1, 2))


def test_out_of_reach_is_exit_code_3(tmp_path, monkeypatch, capsys) -> None:
    options = ("--data", DATA, "--max-size", "2kB", "--effort", "low")
    assert run(monkeypatch, "compress", DIGITS, "-o", tmp_path / "out.onnx", *options) == 3
    assert "size: asked 2000, reached" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--effort", "huge"), "--effort huge: expected one of low, medium, high"),
        (("--time-limit", "0"), "--time-limit 0: expected seconds above 0"),
        (("--workers", "0"), "--workers 0: expected at least 1"),
        (("--resume", "--max-size", "0.1"), "nothing to resume"),
    ],
)
def test_bad_options_are_one_line(options, message, tmp_path, monkeypatch, capsys) -> None:
    output = tmp_path / "out.onnx"
    assert run(monkeypatch, "compress", DIGITS, "-o", output, "--data", DATA, *options) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.strip().splitlines()) == 1
