"""What loops carry without changing it is read from outside; the numbers are the same bits."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

import lwqc
from lwqc.graph.sites import find_sites
from lwqc.model import io
from lwqc.passes.loop_invariants import LoopInvariants
from lwqc.passes.one_view import one_view
from lwqc.runtime.session import Session
from lwqc.testing import assert_untouched
from tests.build import normal

WIDTH, STEPS = 64, 5
W, B = normal(WIDTH, WIDTH, seed=1) / 8, normal(WIDTH, seed=2)
X = {"x": normal(2, WIDTH, seed=3)}


RANKS = {"bo": 1, "b": 1, "bs": 1, "b_last": 1, "all": 3}  # of what is no matrix


def value(name, shape=None, kind=TensorProto.FLOAT):
    sizes = [f"{name}{axis}" for axis in range(RANKS.get(name, 2))] if shape is None else shape
    return helper.make_tensor_value_info(name, kind, sizes)


def counted(number="i", go="c"):
    """What the body of a Loop is given first."""
    return value(number, [], TensorProto.INT64), value(go, [], TensorProto.BOOL)


def node(op, used, made, **attributes):
    return helper.make_node(op, used, made, name=f"n_{made[0]}", **attributes)


def built(nodes, outputs, opset=20) -> ir.Model:
    stored = {"w": W, "b": B, "trip": np.array(STEPS), "go": np.array(True)}
    stored |= {"none": np.array(0), "scanned": normal(STEPS, 2, WIDTH, seed=4)}
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", ["n", WIDTH])],
        [value(name) for name in outputs],
        [numpy_helper.from_array(a, n) for n, a in stored.items()],
    )
    opsets = [helper.make_opsetid("", opset)]
    return io.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=9))


def step(own_w="ws", returned_w="wo", copies=1, also=()):
    """A body that adds tanh(s @ w + b) and carries w and b on, w by way of copies."""
    names = [own_w, *(f"copy{i}" for i in range(copies - 1)), returned_w]
    pairs = itertools.pairwise(names) if copies else ()
    return [
        *(node("Identity", [a], [b]) for a, b in pairs),
        node("MatMul", ["s", own_w], ["p"]),
        node("Add", ["p", "bs"], ["q"]),
        node("Tanh", ["q"], ["t"]),
        node("Add", ["t", "s"], ["so"]),
        *also,
    ]


def loop(*, trip="trip", copies=1, outputs=("last", "w_last", "b_last", "all"), returned="t"):
    made = "wo" if copies else "ws"
    body = helper.make_graph(
        [*step(returned_w=made, copies=copies), node("Identity", ["c"], ["co"])],
        "body",
        [*counted("i", "c"), value("s"), value("ws"), value("bs")],
        [value("co", [], TensorProto.BOOL), value("so"), value(made), value("bs"), value(returned)],
    )
    return [
        node("Identity", ["x"], ["start"]),
        node("Loop", [trip, "go", "start", "w", "b"], list(outputs), body=body),
    ]


def check(given: ir.Model, carried: int, feeds=X) -> ir.Model:
    """The model after the pass, which carries that many values."""
    before = Session(given)(feeds)
    changed = given.clone()
    assert LoopInvariants()(changed).modified
    assert not LoopInvariants()(changed).modified
    onnx.checker.check_model(io.to_bytes(changed), full_check=True)
    after = Session(changed)(feeds)
    assert before.keys() == after.keys()
    for name, expected in before.items():
        np.testing.assert_array_equal(after[name], expected)
    loops = [n for n in changed.graph.all_nodes() if n.op_type in ("Loop", "Scan")]
    assert len(loops) == 1
    first = 2 if loops[0].op_type == "Loop" else 0
    scanned = loops[0].attributes.get_int("num_scan_inputs", 0)
    assert len(loops[0].inputs) - first - scanned == carried
    return changed


@pytest.mark.parametrize("copies", [0, 1, 3])
@pytest.mark.parametrize("trip", ["trip", "none"])
def test_weights_that_are_carried_are_read_from_outside(copies, trip):
    seen = ["last", "all"] if trip == "trip" else ["last"]  # of no steps, sizes are not told
    changed = check(built(loop(trip=trip, copies=copies), seen), 1)
    body = next(n for n in changed.graph if n.op_type == "Loop").attributes["body"].as_graph()
    assert [n.op_type for n in body] == ["MatMul", "Add", "Tanh", "Add", "Identity"]


def test_last_values_are_the_first_ones_also_as_outputs_of_the_model():
    nodes = [*loop(), node("MatMul", ["last", "w_last"], ["y"])]
    check(built(nodes, ["y", "w_last", "b_last"]), 1)


def test_what_is_also_collected_is_returned_as_a_copy():
    check(built(loop(returned="ws"), ["last", "all"]), 1)


def test_a_loop_that_changes_nothing_is_gone():
    body = helper.make_graph(
        [node("Identity", ["c"], ["co"])],
        "body",
        [*counted(), value("s")],
        [value("co", [], TensorProto.BOOL), value("s")],
    )
    given = built([node("Loop", ["trip", "go", "x"], ["y"], body=body)], ["y"])
    changed = given.clone()
    LoopInvariants()(changed)
    assert [n.op_type for n in changed.graph] == ["Identity"]
    np.testing.assert_array_equal(Session(changed)(X)["y"], X["x"])


def scan(copy: bool) -> ir.Model:
    """The same sum by Scan. copy: b is carried on by way of Identity."""
    more = [node("Mul", ["t", "e"], ["z"]), *([node("Identity", ["bs"], ["bo"])] if copy else [])]
    body = helper.make_graph(
        step(also=more),
        "body",
        [value("s"), value("ws"), value("bs"), value("e")],
        [value("so"), value("wo"), value("bo" if copy else "bs"), value("z")],
    )
    names = ["last", "w_last", "b_last", "all"]
    made = node("Scan", ["x", "w", "b", "scanned"], names, body=body, num_scan_inputs=1)
    return built([made], ["last", "all", "b_last"])


def test_scans_too():
    check(scan(copy=True), 1)


def test_a_state_that_the_runtime_loses_is_kept_and_told():
    """ONNX Runtime 1.31.1 gives zeros from the second step on: findings/, scan-state-as-it-is."""
    total = X["x"]
    for _ in range(STEPS):
        total = total + np.tanh(total @ W + B)
    view = one_view(scan(copy=False))
    np.testing.assert_allclose(Session(view)(X)["last"], total, atol=1e-4)
    assert any("n_last: ONNX Runtime loses" in note for note in view.meta["lwqc_notes"])
    told = one_view(scan(copy=True)).meta["lwqc_notes"]
    assert not any("loses" in note for note in told)


def test_what_changes_or_is_swapped_stays():
    swap = helper.make_graph(
        [node("Identity", ["c"], ["co"])],
        "body",
        [*counted("i", "c"), value("a"), value("b2")],
        [value("co", [], TensorProto.BOOL), value("b2"), value("a")],
    )
    given = built([node("Loop", ["trip", "go", "x", "x"], ["y", "z"], body=swap)], ["y", "z"])
    assert not LoopInvariants()(given).modified


def test_an_inner_loop_reads_from_outside_of_both():
    inner = helper.make_graph(
        [*step(), node("Identity", ["c2"], ["co2"])],
        "inner",
        [*counted("i2", "c2"), value("s"), value("ws"), value("bs")],
        [value("co2", [], TensorProto.BOOL), value("so"), value("wo"), value("bs")],
    )
    outer = helper.make_graph(
        [
            node("Identity", ["c"], ["co"]),
            node("Loop", ["trip", "c", "h", "v", "b"], ["ho", "vo", "_b"], body=inner),
        ],
        "outer",
        [*counted("i", "c"), value("h"), value("v")],
        [value("co", [], TensorProto.BOOL), value("ho"), value("vo")],
    )
    given = built([node("Loop", ["trip", "go", "x", "w"], ["y", "_v"], body=outer)], ["y"])
    before = Session(given)(X)["y"]
    changed = given.clone()
    while LoopInvariants()(changed).modified:
        pass
    loops = [n for n in changed.graph.all_nodes() if n.op_type == "Loop"]
    assert [len(n.inputs) for n in loops] == [3, 3]
    np.testing.assert_array_equal(Session(changed)(X)["y"], before)
    assert [s.op for s in find_sites(one_view(given)).sites] == ["MatMul"]


def test_such_weights_are_found_and_quantized():
    given = built(loop(), ["last"])
    assert not find_sites(given).sites
    assert [s.op for s in find_sites(one_view(given)).sites] == ["MatMul"]
    done = lwqc.quantize(given, bits=8, data=[X])
    assert io.serialized_bytes(done.model) < 0.4 * io.serialized_bytes(given)
    found, expected = Session(done.model)(X)["last"], Session(given)(X)["last"]
    np.testing.assert_allclose(found, expected, atol=0.05 * np.abs(expected).max())


def test_other_models_are_untouched():
    assert_untouched(LoopInvariants(), built([node("MatMul", ["x", "w"], ["y"])], ["y"]))
