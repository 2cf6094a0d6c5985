"""Bytes of activations that are needed at once, as a budget."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from lwqc.decide.allocators.evolutionary import Settings
from lwqc.decide.budgets.max_activations import BUDGET
from lwqc.decide.compress import compress_version, open_version
from lwqc.decide.search.control import EFFORTS, SearchControl
from lwqc.decide.search.log import SearchLog
from lwqc.errors import InputError
from lwqc.graph.alive import moments
from lwqc.model import io
from lwqc.plans.goals import Goals
from tests.build import Row, model, normal
from tests.decide.search.searched import DATA, opened


def test_the_widest_moment_counts() -> None:
    """The product's output is alive with the stream that it is added to."""
    rows: list[Row] = [
        ("MatMul", ["x", "w"], "a", {}),
        ("MatMul", ["a", "up"], "b", {}),
        ("Relu", ["b"], "c", {}),  # writes over b
        ("MatMul", ["c", "down"], "d", {}),
        ("Add", ["a", "d"], "y", {}),
    ]
    stored = {"w": normal(8, 8), "up": normal(8, 32), "down": normal(32, 8)}
    net = model(rows, stored, {"x": [2, 8]}, ["y"])
    work = open_version(net, data="random:2")
    assert BUDGET.reference(work, SearchLog()) == 4 * 2 * (8 + 32 + 8)


def test_what_a_body_reads_lasts_until_then() -> None:
    info = onnx.helper.make_tensor_value_info
    body = onnx.helper.make_graph(
        [onnx.helper.make_node("Neg", ["a"], ["r"])], "body", [], [info("r", 1, [1000])]
    )
    nodes = [
        onnx.helper.make_node("Exp", ["x"], ["a"]),
        onnx.helper.make_node("ReduceSum", ["x"], ["s"], keepdims=0),
        onnx.helper.make_node("Greater", ["s", "zero"], ["flag"]),
        onnx.helper.make_node("Expand", ["s", "wide"], ["b"]),
        onnx.helper.make_node("If", ["flag"], ["c"], then_branch=body, else_branch=body),
        onnx.helper.make_node("Concat", ["b", "c"], ["y"], axis=0),
    ]
    stored = [
        onnx.numpy_helper.from_array(np.float32(0), "zero"),
        onnx.numpy_helper.from_array(np.array([1000]), "wide"),
    ]
    graph = onnx.helper.make_graph(
        nodes, "g", [info("x", 1, [1000])], [info("y", 1, [2000])], stored
    )
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)])
    table = moments(io.from_proto(proto).graph, 6)
    assert table[:, 0].tolist() == [1, 1, 1, 1, 1, 0]


def test_only_an_input_of_the_same_size_is_written_over() -> None:
    rows: list[Row] = [
        ("Exp", ["x"], "a", {}),
        ("Exp", ["z"], "b", {}),
        ("Add", ["a", "b"], "y", {}),
        ("Exp", ["y"], "c", {}),
        ("Neg", ["c"], "d", {}),
        ("Mul", ["c", "d"], "e", {}),
    ]
    net = model(rows, {}, {"x": [4, 1], "z": [1, 4]}, ["e"])
    table = moments(net.graph, 6)
    assert table[2].tolist() == [1, 1, 1, 0, 0, 0]
    assert table[5].tolist() == [0, 0, 0, 0, 1, 1]  # of two, one is written over


def test_a_budget_is_met_and_reported(monkeypatch, tmp_path) -> None:
    quick = Settings(generations=2, offspring=4, survivors=(2,))
    monkeypatch.setitem(EFFORTS, "low", quick)
    done = compress_version(
        opened(), Goals(max_activations="0.6"), "auto", SearchControl(effort="low")
    )
    (outcome,) = done.save(tmp_path / "out.onnx").outcomes
    assert (outcome.name, outcome.unit, outcome.met) == ("activations", "bytes", True)
    assert outcome.reached > 0.5 * outcome.asked
    assert done.decisions.prune is not None
    again = open_version(tmp_path / "out.onnx", data=DATA)
    assert BUDGET.reference(again, SearchLog()) == outcome.reached


def test_a_share_of_nothing_is_an_error() -> None:
    net = model([("MatMul", ["x", "w"], "y", {})], {"w": normal(40, 40)}, {"x": ["n", 40]}, ["y"])
    nothing = [{"x": np.zeros((0, 40), np.float32)}]
    with pytest.raises(InputError, match="activations: the original takes none at these sizes"):
        compress_version(open_version(net, data=nothing), Goals(max_activations="0.5"))
