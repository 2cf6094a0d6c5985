"""Branches that read one stream: against numpy, against gates, chains, refusals."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from lwqc.compile.steps.make_parallel import parallel_planned
from lwqc.errors import InputError
from lwqc.graph.adjacent import Adjacency, adjacent_pairs
from lwqc.graph.branch_kinds import branch_tree
from lwqc.model import io
from lwqc.passes.gate_parallel import GateParallel
from lwqc.passes.parallel_branches import ParallelBranches
from lwqc.plans.plan import ParallelPair
from lwqc.runtime.session import Session, SessionSettings
from tests.build import model, normal
from tests.graph.test_branch_kinds import path_of
from tests.zoo.materialize import materialize, sample_inputs

# model: adjacent pairs, branches that follow another one and cannot be parallel to it
ZOO = {
    "gpt2.dynamo": (5, 0),
    "llama_past.dynamo": (5, 0),
    "t5.dynamo": (8, 0),
    "mixtral.dynamo": (3, 0),
    "eva02_tiny_patch14_224.dynamo": (7, 0),
    "mobilenet_v2.dynamo": (5, 4),
    "mobilenet_v3_large.legacy": (4, 5),
    "bert.dynamo": (0, 5),
}


def plain(built: ir.Model) -> Session:
    """Without fusions, which round differently with and without gates."""
    return Session(built, SessionSettings(optimize=False))


def found_pairs(built: ir.Model) -> Adjacency:
    return adjacent_pairs(branch_tree(built.graph))


def parallel(built: ir.Model, pairs) -> ir.Model:
    copy = built.clone()
    ParallelBranches(pairs)(copy)
    return copy


def stack(count: int = 3, between: str = "") -> ir.Model:
    """x + relu(x W), again and again; `between`: an operator after each sum."""
    rows, stream = [], "x"
    for i in range(count):
        rows += [
            ("MatMul", [stream, f"w{i}"], f"h{i}", {}),
            ("Relu", [f"h{i}"], f"f{i}", {}),
            ("Add", [stream, f"f{i}"], f"y{i}", {}),
        ]
        stream = f"y{i}"
        if between:
            rows.append((between, [stream], f"s{i}", {}))
            stream = f"s{i}"
    weights = {f"w{i}": normal(4, 4, seed=i) for i in range(count)}
    return model(rows, weights, {"x": ["n", 4]}, [stream])


def expected(x, reads) -> np.ndarray:
    """reads[i]: how many branches are in what branch i reads."""
    streams = [x]
    for i, k in enumerate(reads):
        branch = np.maximum(streams[k] @ normal(4, 4, seed=i), 0)
        streams.append(streams[-1] + branch)
    return streams[-1]


@pytest.mark.parametrize(
    ("pairs", "reads"),
    [
        ([], [0, 1, 2]),
        ([("y0", "y1")], [0, 0, 2]),
        ([("y1", "y2")], [0, 1, 1]),
        ([("y1", "y2"), ("y0", "y1")], [0, 0, 0]),
    ],
)
def test_parallel_branches_equal_numpy_and_gates(pairs, reads) -> None:
    built, x = stack(), {"x": normal(5, 4, seed=9)}
    assert found_pairs(built).pairs == (("y0", "y1"), ("y1", "y2"))
    small = parallel(built, pairs)
    onnx.checker.check_model(io.to_bytes(small), full_check=True)
    found = plain(small)(x)
    np.testing.assert_allclose(found["y2"], expected(x["x"], reads), rtol=1e-5)
    gated, gates = built.clone(), GateParallel([("y0", "y1"), ("y1", "y2")])
    gates(gated)
    run = plain(gated)
    closed = run({**x, **gates.feeds(second for _, second in pairs)})
    np.testing.assert_array_equal(closed["y2"], found["y2"])
    np.testing.assert_array_equal(run({**x, **gates.feeds()})["y2"], plain(built)(x)["y2"])


@pytest.mark.parametrize("name", ZOO)
def test_architectures(name: str) -> None:
    path = path_of(name)
    built, feeds = ir.from_proto(materialize(path)), sample_inputs(path, batch=1)
    adjacency = found_pairs(built)
    assert (len(adjacency.pairs), len(adjacency.refused)) == ZOO[name]
    assert all(r.reason for r in adjacency.refused)
    if not adjacency.pairs:
        return
    gated, gates = built.clone(), GateParallel(adjacency.pairs)
    gates(gated)
    run = plain(gated)
    for pairs in (*([pair] for pair in adjacency.pairs), adjacency.pairs):
        merged = parallel_planned(built, [ParallelPair(first=a, second=b) for a, b in pairs])
        onnx.checker.check_model(io.to_bytes(merged), full_check=True)
        found = plain(merged)(feeds)
        reference = run({**feeds, **gates.feeds(second for _, second in pairs)})
        for key, value in reference.items():
            scale = max(float(np.abs(value).max()), 1e-6)
            np.testing.assert_allclose(found[key], value, rtol=0, atol=1e-5 * scale)


def test_a_stream_that_a_subgraph_reads() -> None:
    body = helper.make_graph(
        [helper.make_node("MatMul", ["y0", "w1"], ["inner"])],
        "then", [], [helper.make_tensor_value_info("inner", 1, ["n", 4])],
    )  # fmt: skip
    other = helper.make_graph(
        [helper.make_node("Relu", ["y0"], ["inner2"])],
        "else", [], [helper.make_tensor_value_info("inner2", 1, ["n", 4])],
    )  # fmt: skip
    rows = [
        ("MatMul", ["x", "w0"], "f0", {}),
        ("Add", ["x", "f0"], "y0", {}),
        ("If", ["flag"], "f1", {"then_branch": body, "else_branch": other}),
        ("Add", ["y0", "f1"], "y1", {}),
    ]
    weights = {f"w{i}": normal(4, 4, seed=i) for i in range(2)}
    built = model(rows, weights, {"x": ["n", 4], "flag": []}, ["y1"], types={"flag": 9})
    assert found_pairs(built).pairs == (("y0", "y1"),)
    x = normal(3, 4, seed=5)
    found = plain(parallel(built, [("y0", "y1")]))({"x": x, "flag": np.array(False)})
    reference = x + x @ weights["w0"] + np.maximum(x, 0)
    np.testing.assert_allclose(found["y1"], reference, rtol=1e-5, atol=1e-5)


def test_other_readers_of_the_stream_stay() -> None:
    built = stack(2)
    built.graph.outputs.append(built.graph.node("n_y0").outputs[0])
    merged = parallel_planned(built, [ParallelPair(first="y0", second="y1")])
    x = {"x": normal(5, 4, seed=9)}
    found = plain(merged)(x)
    np.testing.assert_array_equal(found["y0"], plain(built)(x)["y0"])
    np.testing.assert_allclose(found["y1"], expected(x["x"], [0, 0]), rtol=1e-5)


def test_refusals() -> None:
    after = stack(2, between="Relu")
    assert not found_pairs(after).pairs
    reason = "y1: cannot be parallel to y0: it reads the output of Relu, not that of y0"
    for rewrite in (ParallelBranches, GateParallel):
        with pytest.raises(InputError, match=reason):
            rewrite([("y0", "y1")])(after.clone())
        with pytest.raises(InputError, match="y2: cannot be parallel to y0: it follows y1"):
            rewrite([("y0", "y2")])(stack())
        with pytest.raises(InputError, match="y0: cannot be parallel to y1: it follows no branch"):
            rewrite([("y1", "y0")])(stack())
        with pytest.raises(InputError, match="nothing: is no branch; see lwqc inspect"):
            rewrite([("y0", "nothing")])(stack())
    resnet = io.load(path_of("glyph_resnet"))
    with pytest.raises(InputError, match="add_137: is no branch: a projection shortcut"):
        ParallelBranches([("add_91", "add_137")])(resnet)


def test_several_branches_in_one_sum_are_refused() -> None:
    rows = [
        ("MatMul", ["x", "a"], "f", {}),
        ("MatMul", ["x", "b"], "g", {}),
        ("Sum", ["x", "f", "g"], "y", {}),
        ("MatMul", ["y", "c"], "h", {}),
        ("Add", ["y", "h"], "z", {}),
    ]
    weights = {n: normal(4, 4, seed=i) for i, n in enumerate("abc")}
    found = found_pairs(model(rows, weights, {"x": ["n", 4]}, ["z"]))
    assert not found.pairs
    assert found.reasons["z"].endswith("is joined together with other branches")


def test_a_scaled_shortcut_is_refused() -> None:
    rows = [
        ("MatMul", ["x", "a"], "f", {}),
        ("Add", ["x", "f"], "y", {}),
        ("Mul", ["y", "half"], "s", {}),
        ("MatMul", ["y", "b"], "g", {}),
        ("Add", ["s", "g"], "z", {}),
    ]
    weights = {"a": normal(4, 4), "b": normal(4, 4, seed=1), "half": np.float32([0.5])}
    found = found_pairs(model(rows, weights, {"x": ["n", 4]}, ["z"]))
    assert not found.pairs
    assert found.reasons == {"z": "its shortcut is scaled, reshaped or quantized"}


def test_no_pairs_change_nothing() -> None:
    built = stack()
    before = ir.to_proto(built).SerializeToString()
    assert not ParallelBranches([])(built).modified
    assert not GateParallel([])(built).modified
    assert ir.to_proto(built).SerializeToString() == before
    empty = model([("Relu", ["x"], "y", {})], {}, {"x": ["n", 4]}, ["y"])
    assert found_pairs(empty) == Adjacency((), ())
