from __future__ import annotations

import gc
import os
import sys
from functools import cache
from pathlib import Path

import pytest
import typer.main

from lwqc import cli
from lwqc.backends.cpu import CpuTarget
from lwqc.cli import telling

# Where it is set, as in many containers, each of the processes that tests start would compile lwqc.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
pytest_plugins = ["lwqc.testing.plugin"]  # also where an older lwqc is installed
typer.main.get_command = cache(typer.main.get_command)  # a tenth of a second for each command
# Crossings that check one code path many times are thinned, each by the rule that stands with it.
ALL = bool(os.environ.get("LWQC_TEST_ALL"))
ZOO = sorted((Path(__file__).parent / "zoo").glob("*.onnx"))


def pytest_collection_finish():
    """What is imported and collected stays: it is not searched for garbage again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def timings(tmp_path_factory):
    """Times of kernels are kept for one run of the tests, and short: no test reads them."""
    os.environ["LWQC_CACHE"] = str(tmp_path_factory.mktemp("timings"))
    os.environ["LWQC_TIMING_S"] = "0.02"


@pytest.fixture(autouse=True)
def no_lines_of_progress(monkeypatch):
    """However slow a machine is: tests count lines on stderr."""
    monkeypatch.setattr(telling, "_RARELY", float("inf"))


@pytest.fixture
def untimed(monkeypatch):
    """Nothing is chosen by its speed on this machine: results follow from the graph alone."""
    monkeypatch.setattr(CpuTarget, "unmeasured", lambda self: "not timed in this test")


@pytest.fixture
def run(monkeypatch, capsys):
    """Call the command; returns (exit code, stdout, stderr)."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["lwqc", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        captured = capsys.readouterr()
        return caught.value.code, captured.out, captured.err

    return call


@pytest.fixture(params=ZOO, ids=lambda p: p.stem)
def skeleton(request) -> Path:
    """Each architecture of the zoo in turn, as a file without weights."""
    return request.param
