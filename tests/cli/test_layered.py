"""Nodes as boxes: below what they read, none on another one."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import GraphProto, TensorProto, helper, numpy_helper

from lwqc.cli.report.html.at_load import at_load
from lwqc.cli.report.html.layered import layered
from lwqc.cli.report.html.outline import outline
from lwqc.model import io
from tests.build import model, normal

NODES = [("Relu", ["x"], "a", {}), ("Sigmoid", ["a"], "b", {}), ("Tanh", ["a"], "c", {}),
         ("Exp", ["a"], "d", {}), ("Add", ["b", "c"], "e", {}), ("Mul", ["e", "a"], "f", {}),
         ("MatMul", ["f", "w"], "y", {})]  # fmt: skip


@pytest.fixture(scope="module")
def nodes() -> list[ir.Node]:
    return list(model(NODES, {"w": normal(4, 4)}, {"x": [4, 4]}, ["y"]).graph)


def drawn(nodes):
    return layered(nodes, lambda node: node.op_type, lambda node: "")


def test_a_node_stands_below_all_that_it_reads(nodes) -> None:
    drawing = drawn(nodes)
    at = {box.text: box for box in drawing.boxes}
    rows = {name: box.y for name, box in at.items()}
    assert rows["Relu"] < rows["Sigmoid"] == rows["Tanh"] == rows["Exp"] < rows["Add"]
    assert rows["Add"] < rows["Mul"] < rows["MatMul"]
    places = {(box.x, box.y) for box in drawing.boxes}
    assert len(places) == len(nodes)
    assert max(box.x + box.width for box in drawing.boxes) == drawing.width
    assert max(box.y + box.height for box in drawing.boxes) <= drawing.height


def test_each_edge_is_a_line_downwards_once(nodes) -> None:
    drawing = drawn(nodes)
    feet = {(box.x + box.width // 2, box.y + box.height): box.text for box in drawing.boxes}
    heads = {(box.x + box.width // 2, box.y): box.text for box in drawing.boxes}
    assert all(line.to_y > line.y for line in drawing.lines)
    edges = [(feet.get((n.x, n.y)), heads.get((n.to_x, n.to_y))) for n in drawing.lines]
    inner = sorted((a, b) for a, b in edges if a and b)
    assert inner == sorted([
        ("Relu", "Sigmoid"), ("Relu", "Tanh"), ("Relu", "Exp"), ("Sigmoid", "Add"),
        ("Tanh", "Add"), ("Add", "Mul"), ("Relu", "Mul"), ("Mul", "MatMul"),
    ])  # fmt: skip
    # The input of the model comes in at the top, its output leaves at the bottom.
    assert sorted((a or "", b or "") for a, b in edges if not (a and b)) == [
        ("", "Relu"), ("MatMul", "")
    ]  # fmt: skip


def test_what_other_parts_read_is_a_short_end(nodes) -> None:
    drawing = drawn(nodes[:2])
    ends = [line for line in drawing.lines if line.to_y - line.y == 8]
    assert len(ends) == 3  # x into Relu, Relu and Sigmoid to what is not drawn


def test_what_runs_at_load_belongs_to_what_reads_it() -> None:
    """Weights that are unpacked when a model is loaded are none of its nodes for a reader."""
    rows = [("Cast", ["c"], "f", {"to": 1}), ("Mul", ["f", "s"], "w", {}),
            ("MatMul", ["x", "w"], "h", {}), ("RandomNormal", [], "r", {"shape": [4, 4]}),
            ("Add", ["h", "r"], "y", {})]  # fmt: skip
    weights = {"c": np.ones((4, 4), np.int8), "s": normal(1)}
    graph = model(rows, weights, {"x": [4, 4]}, ["y"]).graph
    found = at_load(graph)
    assert [node.op_type for node in found] == ["MatMul", "RandomNormal", "Add"]
    assert [[n.op_type for n in read] for read in found.values()] == [["Cast", "Mul"], [], []]


def test_bodies_count_and_a_long_row_is_broken() -> None:
    """A body's weights are those of its node; more nodes than a page is wide stand in rows."""
    wide = [("Relu", ["x"], f"r{n}", {}) for n in range(100)]
    drawing = drawn(list(model(wide, {}, {"x": [2]}, [f"r{n}" for n in range(100)]).graph))
    assert len({(box.x, box.y) for box in drawing.boxes}) == 100
    assert drawing.width < 4000
    then, other = (branch(seed) for seed in (1, 2))
    graph = helper.make_graph(
        [helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other)],
        "g",
        [helper.make_tensor_value_info("c", TensorProto.BOOL, []),
         helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 64])],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 18)]
    (part,) = outline(io.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=9)))
    assert "32.77 kB of weights" in part.text


def branch(seed: int) -> GraphProto:
    """A product with a weight of its own, which has the name of the other branch's."""
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    out = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 64])]
    weight = numpy_helper.from_array(normal(64, 64, seed=seed), "w")
    return helper.make_graph([node], "body", [], out, [weight])


def test_a_long_model_is_drawn_as_far_as_a_page_goes() -> None:
    chain = [("Relu", [f"a{n}" if n else "x"], f"a{n + 1}", {}) for n in range(1300)]
    (part,) = outline(model(chain, {}, {"x": [2]}, ["a1300"]))
    assert part.drawing is not None
    assert len(part.drawing.boxes) == 1200
    assert "Drawn: 1200 of the nodes; a page holds drawings of 1200." in part.lines
