"""Residual branches on textual graphs, one per guard, and on the architecture skeletons."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest

from lwqc.graph.branches import find_branches, residual_branches
from tests import build

ZOO = Path(__file__).parents[1] / "zoo"
HEAD = '<ir_version: 10, opset_import: ["" : 21]>\n'
_ONES = ", ".join(["1"] * 16)
WEIGHTS = f"<float[4, 4] w = {{{_ONES}}}, float[4] b = {{1, 1, 1, 1}}, float[4, 4] v = {{{_ONES}}}>"


def branches(body: str, signature: str = "(float[n, 4] x) => (float[n, 4] y)"):
    model = ir.from_onnx_text(f"{HEAD}net {signature} {WEIGHTS} {{\n{body}\n}}")
    return residual_branches(model.graph)


def ops(branch) -> list[str]:
    return [node.op_type for node in branch.nodes]


@pytest.mark.parametrize("join", ["Add(x, f)", "Add(f, x)", "Sum(x, f)"])
def test_branch_on_the_stream(join: str) -> None:
    (found,) = branches(f"h = MatMul(x, w)\nf = Relu(h)\ny = {join}")
    assert ops(found) == ["MatMul", "Relu"]
    assert (found.stream.name, found.branch.name, found.output.name) == ("x", "f", "y")
    assert found.add.op_type == join[:3]


def test_side_inputs_belong_to_the_branch_only_if_they_depend_on_the_stream() -> None:
    (found,) = branches(
        "s = Relu(x)\nt = Transpose(w)\nm = Neg(x)\nh = MatMul(s, t)\nf = Mul(h, m)\ny = Add(s, f)"
    )
    assert ops(found) == ["MatMul", "Mul"]


def test_nested_branches_are_both_found() -> None:
    found = branches("f = MatMul(x, w)\ng = MatMul(f, v)\nh = Add(f, g)\ny = Add(x, h)")
    assert [ops(b) for b in found] == [["MatMul"], ["MatMul", "MatMul", "Add"]]


@pytest.mark.parametrize(
    "body",
    [
        "h = MatMul(x, w)\ny = Add(h, b)",  # a bias
        "h = MatMul(x, w)\nc = Identity(b)\ny = Add(h, c)",  # a bias behind an Identity
        "f = MatMul(x, w)\ng = MatMul(x, v)\ny = Add(f, g)",  # a projection shortcut
        "y = Add(x, x)",  # doubling
        "f = Mul(x, x)\ny = Add(x, f)",  # a polynomial: nothing is learned
        "h = MatMul(x, w)\ny = Sum(x, h, h)",  # not a sum of two
        "h = MatMul(x, w)\ny = Sub(x, h)",  # not a sum
        "h = MatMul(x, w)\nf = Relu(h)\nz = Add(x, f)\ny = Mul(z, h)",  # f is read elsewhere
    ],
)
def test_near_misses(body: str) -> None:
    assert branches(body) == []


PARALLEL = {
    "sum of sums": "s = Add(f, g)\ny = Add(x, s)",
    "one after the other": "s = Add(x, f)\ny = Add(s, g)",
    "one node": "y = Sum(x, f, g)",
    "from the right": "s = Add(f, g)\ny = Add(s, x)",
}


@pytest.mark.parametrize("join", PARALLEL.values(), ids=PARALLEL.keys())
def test_parallel_branches_share_a_norm(join: str) -> None:
    found = branches(f"n = Relu(x)\nf = MatMul(n, w)\nh = MatMul(n, v)\ng = Relu(h)\n{join}")
    assert [ops(b) for b in found] == [["MatMul"], ["MatMul", "Relu"]]
    assert [b.branch.name for b in found] == ["f", "g"]
    assert {b.stream.name for b in found} == {"x"}
    assert len({b.name for b in found}) == 2


def test_terms_that_share_their_layers_are_one_branch() -> None:
    (found,) = branches("h = MatMul(x, w)\np = Relu(h)\nq = Neg(h)\nf = Add(p, q)\ny = Add(x, f)")
    assert ops(found) == ["MatMul", "Relu", "Neg", "Add"]


@pytest.mark.parametrize(
    "shortcut", ["s = Mul(x, b)", "s = Identity(x)", "t = Neg(b)\ns = Div(x, b)"]
)
def test_scaled_and_moved_shortcuts_are_streams(shortcut: str) -> None:
    (found,) = branches(f"f = MatMul(x, w)\n{shortcut}\ny = Add(s, f)")
    assert (found.stream.name, found.entry.name) == ("s", "x")


def test_rotary_embeddings_are_no_branches() -> None:
    body = "c = Mul(x, b)\nr = Neg(x)\ns = Mul(r, b)\ny = Add(c, s)"
    assert branches(body) == []


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("a = MatMul(x, w)\nf = MatMul(a, w)\ng = MatMul(a, v)\ny = Add(f, g)", "projection"),
        ("a = MatMul(x, w)\nf = MatMul(a, v)\ng = Relu(a)\ny = Add(f, g)", "passes Relu"),
        (
            "r = MatMul(x, v)\nf = MatMul(r, w)\nh = Relu(f)\nz = Add(r, h)\ny = Mul(z, f)",
            "f, inside the branch, is also read by Mul",
        ),
    ],
)
def test_refused_additions_have_a_reason(body: str, reason: str) -> None:
    model = ir.from_onnx_text(
        f"{HEAD}net (float[4, 4] x) => (float[4, 4] y) {WEIGHTS} {{\n{body}\n}}"
    )
    found = find_branches(model.graph)
    assert not found.branches
    (refused,) = found.refused
    assert reason in refused.reason


def test_branches_that_widen_the_stream_are_refused() -> None:
    rows = [
        ("MatMul", ["x", "w"], "r", {}),
        ("MatMul", ["r", "w"], "h", {}),
        ("Add", ["h", "z"], "f", {}),
        ("Add", ["r", "f"], "y", {}),
    ]
    built = build.model(rows, {"w": build.normal(4, 4)}, {"x": [1, 4], "z": [3, 4]}, ["y"])
    found = find_branches(built.graph)
    assert not found.branches
    assert found.refused[0].reason == "changes the stream's shape from [1,4] to [3,4]"


def test_mask_shared_by_layers_is_no_stream() -> None:
    found = branches(
        """
        m = Neg(mask)
        h0 = MatMul(x, w)
        a0 = Add(h0, m)
        y0 = Add(x, a0)
        h1 = MatMul(y0, v)
        a1 = Add(h1, m)
        y = Add(y0, a1)
        """,
        "(float[n, 4] x, float[n, 4] mask) => (float[n, 4] y)",
    )
    assert [(b.stream.name, b.branch.name) for b in found] == [("x", "a0"), ("y0", "a1")]


def test_values_of_a_branch_may_be_outputs_and_give_their_shape() -> None:
    (found,) = branches(
        """
        k = MatMul(x, w)
        s = Shape(k)
        f = Reshape(k, s)
        z = Add(x, f)
        y = Expand(z, s)
        """,
        "(float[n, 4] x) => (float[n, 4] y, float[n, 4] k)",
    )
    assert ops(found) == ["MatMul", "Shape", "Reshape"]


IF_BODY = """
    f = If (flag) <
      then_branch = then_g () => (float[n, 4] a) { a = MatMul(%s, w) },
      else_branch = else_g () => (float[n, 4] c) { c = MatMul(%s, v) }
    >
"""
FLAG = "(float[n, 4] x, bool flag) => (float[n, 4] y)"


def test_the_stream_may_enter_through_a_subgraph() -> None:
    (found,) = branches(IF_BODY % ("x", "x") + "y = Add(x, f)", FLAG)
    assert ops(found) == ["If"]


def test_use_inside_a_subgraph_is_a_use() -> None:
    body = "h = MatMul(x, w)\nz = Add(x, h)" + IF_BODY % ("z", "h") + "y = Relu(f)"
    assert branches(body, FLAG) == []


def test_deep_graphs_need_no_recursion() -> None:
    lines = [f"a{i + 1} = Relu(a{i})" for i in range(1, 5000)]
    body = "\n".join(["a1 = MatMul(x, w)", *lines, "y = Add(x, a5000)"])
    (found,) = branches(body)
    assert len(found.nodes) == 5000


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("bert.dynamo", 6),
        ("bert.legacy", 6),
        ("beit_base_patch16_224.dynamo", 6),
        ("convnext_tiny.dynamo", 18),
        ("densenet121.dynamo", 0),
        ("ghostnet_100.dynamo", 11),
        ("gpt2.dynamo", 6),
        ("llama_past.dynamo", 6),
        ("llama_past.legacy", 6),
        ("maxvit_pico.dynamo", 51),
        ("mixtral.dynamo", 4),
        ("mobilenet_v2.dynamo", 10),
        ("resnet50.dynamo", 12),
        ("resnet50.legacy", 12),
        ("shufflenet_v2_x1_0.legacy", 0),
        ("swin_t.dynamo", 24),
        ("t5.dynamo", 10),
        ("vit_small_patch16_224.dynamo", 12),
        ("vit_small_patch16_224.legacy", 12),
    ],
)
def test_architectures(name: str, count: int) -> None:
    model = ir.load(ZOO / f"{name}.onnx")
    before = ir.to_proto(model).SerializeToString()
    assert len(residual_branches(model.graph)) == count
    assert ir.to_proto(model).SerializeToString() == before


def test_long_sums_and_stacks_take_no_recursion_and_little_time() -> None:
    layers = [f"f{i} = MatMul(x, w)" for i in range(500)]
    sums = [f"s{i} = Add({f's{i - 1}' if i > 1 else 'f0'}, f{i})" for i in range(1, 500)]
    assert len(branches("\n".join([*layers, *sums, "y = Add(x, s499)"]))) == 32
    stack = ["y0 = MatMul(x, v)"]
    stack += [f"f{i} = MatMul(y{i}, w)\ny{i + 1} = Add(y{i}, f{i})" for i in range(1000)]
    assert len(branches("\n".join([*stack, "y = Relu(y1000)"]))) == 1000
