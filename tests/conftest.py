from __future__ import annotations

import gc
import math
import os
import signal
import sys
from functools import cache
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
import typer.main

from lwqc import cli
from lwqc.backends.cpu import CpuTarget
from lwqc.cli import telling
from lwqc.runtime import timer
from lwqc.runtime.session import Session

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


@pytest.fixture(autouse=True, scope="session")
def interruptible():
    """A shell lets what it starts in the background ignore SIGINT, and all that this starts too."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def no_lines_of_progress(monkeypatch):
    """However slow a machine is: tests count lines on stderr."""
    monkeypatch.setattr(telling, "_RARELY", float("inf"))


@pytest.fixture(autouse=True, scope="session")
def costs():
    """Each session knows what its graph costs; in other processes they do not."""
    made = Session.__init__

    def built(self, model, *arguments, **options):
        made(self, model, *arguments, **options)
        self.cost = cost(model)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Session, "__init__", built)
        yield


@pytest.fixture(autouse=True)
def clock(request, monkeypatch, costs):
    """A run takes as long as its graph costs: what tests see follows from the graph alone.

    On a machine that is busy for a moment, what is decided by time would be decided otherwise. What
    is marked `timed` is timed.
    """
    if not request.node.get_closest_marker("timed"):
        monkeypatch.setattr(Session, "seconds", lambda self, feeds: self(feeds) and self.cost)
        monkeypatch.setattr(timer, "_turn", lambda one, feeds, runs: [one.seconds(feeds)] * runs)


def cost(model):
    """Seconds: one microsecond for each node and one nanosecond for each byte of the weights."""
    if isinstance(model, ir.Model):
        tensors = [v.const_value for v in model.graph.initializers.values()]
        size = sum(tensor.nbytes for tensor in tensors if tensor is not None)
        return 1e-6 * sum(1 for _ in model.graph.all_nodes()) + 1e-9 * size
    if isinstance(model, bytes):
        graph = onnx.load_from_string(model).graph
    else:
        graph = onnx.load(model, load_external_data=False).graph
    bits = sum(
        math.prod(tensor.dims) * ir.DataType(tensor.data_type).bitwidth
        for tensor in graph.initializer
        if tensor.data_type != onnx.TensorProto.STRING
    )
    return 1e-6 * nodes(graph) + 1e-9 * bits / 8


def nodes(graph):
    """How many there are, bodies included."""
    bodies = (a.g for node in graph.node for a in node.attribute if a.HasField("g"))
    return len(graph.node) + sum(map(nodes, bodies))


@pytest.fixture
def slow_low_bits(monkeypatch):
    """Products of few bits take longer than those of floats, as with many rows at once."""
    monkeypatch.setattr(
        "lwqc.decide.mixed.slow_products",
        lambda work: dict.fromkeys(range(2, 9), frozenset(work.sites)),
    )


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
