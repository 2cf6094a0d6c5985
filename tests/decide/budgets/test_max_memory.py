"""Memory of a process as a budget."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
import pytest

from lwqc.decide.budgets import max_memory
from lwqc.decide.compress import compress_version, open_version
from lwqc.decide.search.control import SearchControl
from lwqc.decide.search.space import Stored
from lwqc.errors import InputError, LwqcError
from lwqc.graph.alive import moments
from lwqc.model import io
from lwqc.plans.bounds import Amount
from lwqc.plans.goals import Goals
from lwqc.plans.recipe import find
from lwqc.runtime.memory import can_measure_memory, peak_memory
from tests.build import Row, model, normal
from tests.decide.search.searched import DATA, DIGITS, found, opened

linux = pytest.mark.skipif(not can_measure_memory(), reason="memory is measured on Linux only")


def product(size: int) -> ir.Model:
    rows: list[Row] = [("MatMul", ["x", "w"], "y", {})]
    return model(rows, {"w": normal(size, size)}, {"x": [1, size]}, ["y"])


@linux
def test_the_peak_follows_the_weights() -> None:
    small, large = (
        peak_memory(product(size), {"x": np.ones((1, size), np.float32)}) for size in (256, 2048)
    )
    assert 4 * 2048**2 < large < 20 * 2048**2
    assert 0 < small < large / 3


@linux
def test_an_input_may_have_any_name() -> None:
    rows: list[Row] = [("Relu", ["file"], "y", {})]
    relu = model(rows, {}, {"file": [1, 4]}, ["y"])
    assert peak_memory(relu, {"file": np.ones((1, 4), np.float32)}) >= 0


@linux
def test_a_process_that_fails_says_why() -> None:
    with pytest.raises(LwqcError, match="x"):
        peak_memory(product(8), {"x": np.ones((1, 9), np.float32)})


def test_what_is_needed_at_once() -> None:
    rows: list[Row] = [
        ("MatMul", ["x", "w"], "a", {}),
        ("Relu", ["a"], "b", {}),  # writes over a
        ("Reshape", ["b", "shape"], "c", {}),  # is b
        ("MatMul", ["c", "w"], "d", {}),
        ("Add", ["c", "d"], "y", {}),  # writes over one of both
    ]
    stored = {"w": normal(4, 4), "shape": np.array([1, 4])}
    graph = model(rows, stored, {"x": [1, 4]}, ["y"]).graph
    wanted = [
        [1, 0, 0, 0, 0],
        [0, 1, 0, 0, 0],
        [0, 1, 0, 0, 0],
        [0, 1, 0, 1, 0],
        [0, 0, 0, 1, 1],
    ]
    assert moments(graph, 5).tolist() == wanted


def test_weights_are_held_as_their_kernel_reads_them() -> None:
    """A product reads codes, a convolution with weights in few bits computes in float."""
    work = open_version(product(256))
    entry = next(iter(work.job.target.candidates(work.sites["w"], work.opset)))
    assert max_memory._held(work, Stored("w", (256, 256), 4), None) == 4 * 256**2
    held = max_memory._held(work, Stored("w", (256, 256), 4), entry)
    assert held == entry.size_bytes(256, 256) < 256**2 * 1.2
    assert "memory_bytes" not in found().space.cost(found().space.top)  # nobody asked for it
    convolutions = [s for s in found().space.stored if s.op == "Conv" and len(s.entries) > 1]
    assert convolutions
    for stored in convolutions:
        lowest = stored.entries[0]
        assert lowest is not None
        whole = 4.0 * math.prod(stored.shape)
        assert max_memory._held(found().work, stored, lowest) == whole


def test_a_budget_is_met_and_reported(monkeypatch, tmp_path) -> None:
    """Memory is given, so that the test does not depend on the runtime: weights and a constant."""

    def memory(source, feeds) -> int:
        loaded = source if isinstance(source, ir.Model) else io.load(source)
        return 100_000 + io.weight_bytes(loaded)

    monkeypatch.setattr(max_memory, "peak_memory", memory)
    goals = Goals(max_memory=Amount(0.5, True))
    nearest = find("auto").model_copy(update={"method": "rtn"})
    done = compress_version(opened(), goals, nearest, SearchControl(effort="low"))
    report = done.save(tmp_path / "out.onnx")
    (outcome,) = report.outcomes
    assert (outcome.name, outcome.met) == ("memory", True)
    assert report.weighed["memory"] is not None
    before, after = report.weighed["memory"]
    assert report.to_dict()["memory"] == [before, after]
    assert outcome.reached == after
    assert 0.3 * before < after <= 0.51 * before
    top_1 = report.divergence["logits"].decisions.top_1
    assert top_1 is not None
    assert top_1 > 0.9


def test_budgets_that_cannot_be_measured_are_refused() -> None:
    goals = Goals(max_memory=Amount(0.5, True))
    with pytest.raises(InputError, match="--max-memory needs a search"):
        compress_version(open_version(DIGITS), goals, "w8")
    cuda = open_version(DIGITS, data=DATA, target="cuda")
    with pytest.raises(InputError, match="Linux for target cpu only"):
        compress_version(cuda, goals)


@pytest.mark.parametrize("text", ["2", "half", "-1MB"])
def test_bad_amounts_are_one_line(run, text, tmp_path) -> None:
    call = ["compress", DIGITS, "-o", tmp_path / "o.onnx", "--max-memory", text]
    code, _, err = run(*call)
    assert code == 2
    assert len(err.strip().splitlines()) == 1
    assert f"memory '{text}'" in err
