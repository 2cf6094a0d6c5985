"""One wider layer for parallel ones: the same outputs, fewer layers; a near miss per guard."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper
from onnx_ir.passes.common import ShapeInferencePass

from lwqc.compile.steps.make_parallel import parallel_planned
from lwqc.graph.adjacent import adjacent_pairs
from lwqc.graph.branch_kinds import branch_tree
from lwqc.model import io
from lwqc.passes.fold_norms import FoldNorms
from lwqc.passes.join_equal import JoinEqual
from lwqc.passes.merge_parallel import MergeParallel
from lwqc.passes.parallel_branches import ParallelBranches
from lwqc.plans.plan import ParallelPair
from lwqc.runtime.session import Session, SessionSettings
from lwqc.testing import applied
from models import glyphs, stdlib_lm
from tests.build import Row, model, normal
from tests.graph.test_branch_kinds import path_of

TOLERANCE = 1e-5  # of the largest output: sums in another order


def run(built: ir.Model, feeds):
    return Session(built, SessionSettings(optimize=False))(feeds)


def check(before: ir.Model, after: ir.Model, feeds) -> None:
    onnx.checker.check_model(io.to_bytes(after), full_check=True)
    found = run(after, feeds)
    for name, value in run(before, feeds).items():
        scale = max(float(np.abs(value).max()), 1e-6)
        np.testing.assert_allclose(found[name], value, rtol=0, atol=TOLERANCE * scale)


def merged(built: ir.Model, feeds) -> tuple[ir.Model, Mapping[str, str]]:
    done = applied(MergeParallel(), built)
    check(built, done.model, feeds)
    return done.model, done.refused


def ops(built: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in built.graph)


X = {"x": normal(2, 5, 8, seed=9)}
IMAGE = {"x": normal(2, 6, 7, 7, seed=9)}


def net(rows: list[Row], weights, outputs=("y",), shape=("b", "s", 8), **options) -> ir.Model:
    return model(rows, weights, {"x": list(shape)}, list(outputs), **options)


def mlps(activation: list[Row], **changes) -> ir.Model:
    """x + mlp a + mlp b. activation: rows from {i}h to {i}g for each."""
    rows: list[Row] = []
    weights = {"half": np.float32(0.5), "one": np.float32(1), "root": np.float32(2**0.5)}
    for i, (name, hidden) in enumerate({"a": 12, "b": 20}.items()):
        fill = lambda text, name=name: text.replace("{i}", name)  # noqa: E731  one letter
        rows += [
            ("MatMul", ["x", f"{name}1"], f"{name}m", {}),
            ("Add", [f"{name}m", f"{name}c"], f"{name}h", {}),
            *((op, [fill(v) for v in ins], fill(out), kw) for op, ins, out, kw in activation),
            ("MatMul", [f"{name}g", f"{name}2"], f"{name}n", {}),
            ("Add", [f"{name}n", f"{name}d"], f"{name}f", {}),
        ]
        weights |= {
            f"{name}1": normal(8, hidden, seed=i), f"{name}c": normal(hidden, seed=i + 2),
            f"{name}2": normal(hidden, 8, seed=i + 4), f"{name}d": normal(8, seed=i + 6),
        }  # fmt: skip
    rows += [("Add", ["x", "af"], "z", {}), ("Add", ["z", "bf"], "y", {})]
    return net(rows, weights | changes)


RELU: list[Row] = [("Relu", ["{i}h"], "{i}g", {})]
ERF: list[Row] = [
    ("Div", ["{i}h", "root"], "{i}r", {}),
    ("Erf", ["{i}r"], "{i}e", {}),
    ("Add", ["{i}e", "one"], "{i}p", {}),
    ("Mul", ["{i}h", "{i}p"], "{i}q", {}),
    ("Mul", ["{i}q", "half"], "{i}g", {}),
]
SILU: list[Row] = [("Sigmoid", ["{i}h"], "{i}s", {}), ("Mul", ["{i}h", "{i}s"], "{i}g", {})]


@pytest.mark.parametrize("activation", [RELU, ERF, SILU], ids=["relu", "erf", "silu"])
def test_two_mlps_are_one_wider(activation) -> None:
    built = mlps(activation)
    wide, refused = merged(built, X)
    assert ops(built)["MatMul"] == 4
    assert ops(wide)["MatMul"] == 2
    assert not ops(wide).keys() & {"Split", "Concat"}
    assert ops(wide)["Add"] == 3 + (activation is ERF)  # biases, bias, stream
    assert not refused
    assert sorted(v.shape.numpy() for v in wide.graph.initializers.values() if len(v.shape) == 2) \
        == [(8, 32), (32, 8)]  # fmt: skip


def test_twins_that_differ_are_put_together_by_a_concat() -> None:
    clipped: list[Row] = [("Clip", ["{i}h", "", "{i}limit"], "{i}g", {})]
    near = mlps(clipped, alimit=np.float32(0.5), blimit=np.float32(0.25))
    wide, _ = merged(near, X)
    assert ops(wide) == Counter(MatMul=2, Split=1, Clip=2, Concat=1, Add=3)
    same = mlps(clipped, alimit=np.float32(0.5), blimit=np.float32(0.5))
    assert ops(merged(same, X)[0]) == Counter(MatMul=2, Clip=1, Add=3)


def test_layers_of_one_value_share_a_product_and_their_chain() -> None:
    rows: list[Row] = []
    for name in "qkv":
        rows += [("MatMul", ["x", f"w{name}"], f"m{name}", {}),
                 ("Add", [f"m{name}", f"b{name}"], f"h{name}", {})]  # fmt: skip
    rows += [("Softmax", ["hq"], "sq", {}), ("Relu", ["hk"], "rk", {}), ("Neg", ["hv"], "nv", {})]
    weights = {f"w{n}": normal(8, 4 + i, seed=i) for i, n in enumerate("qkv")}
    weights |= {f"b{n}": normal(4 + i, seed=i) for i, n in enumerate("qkv")}
    for opset in (11, 20):
        built = net(rows, weights, ["sq", "rk", "nv"], opset=opset)
        wide, _ = merged(built, X)
        assert ops(wide) == Counter(MatMul=1, Add=1, Split=1, Softmax=1, Relu=1, Neg=1)


def test_results_that_are_graph_outputs_keep_their_names() -> None:
    rows: list[Row] = [("MatMul", ["x", "a"], "p", {}), ("MatMul", ["x", "b"], "q", {})]
    weights = {"a": normal(8, 3), "b": normal(8, 4, seed=1)}
    wide, _ = merged(net(rows, weights, ["p", "q"]), X)
    assert ops(wide) == Counter(MatMul=1, Split=1)


def gemm(bias=True, **attributes) -> ir.Model:
    ins = [["x", w, f"{w}c"] if bias else ["x", w] for w in "ab"]
    rows: list[Row] = [
        ("Gemm", ins[0], "p", {"transB": 1}),
        ("Gemm", ins[1], "q", {"transB": 1, **attributes}),
        ("Relu", ["p"], "r", {}),
        ("Relu", ["q"], "s", {}),
        ("Gemm", ["r", "u", "uc"], "t", {}),
        ("Gemm", ["s", "v", "vc"], "w", {}),
        ("Add", ["t", "w"], "y", {}),
    ]
    weights = {"a": normal(4, 8), "b": normal(6, 8, seed=1), "ac": normal(4), "bc": normal(6),
               "u": normal(4, 8), "v": normal(6, 8, seed=2), "uc": normal(8),
               "vc": normal(8, seed=3)}  # fmt: skip
    return net(rows, {k: v for k, v in weights.items() if bias or k not in ("ac", "bc")},
               shape=("b", 8))  # fmt: skip


@pytest.mark.parametrize("bias", [True, False])
def test_gemms(bias) -> None:
    feeds = {"x": normal(3, 8, seed=9)}
    assert ops(merged(gemm(bias), feeds)[0]) == Counter(Gemm=2, Relu=1)
    scaled, refused = merged(gemm(alpha=0.5), feeds)
    assert ops(scaled) == Counter(Gemm=3, Relu=2, Concat=1)
    assert refused == {"q": "its Gemm has alpha, beta or transA set"}


def bottlenecks(kernel_b: int = 3, stride_b: int = 1) -> ir.Model:
    """Two inverted residuals: 1x1, batch norm, depthwise, 1x1."""
    rows: list[Row] = []
    weights = {}
    for i, (n, wide, kernel, stride) in enumerate([("a", 8, 3, 1), ("b", 12, kernel_b, stride_b)]):
        pads = [kernel // 2] * 4
        rows += [
            ("Conv", ["x", f"{n}1"], f"{n}e", {}),
            ("BatchNormalization", [f"{n}e", *(f"{n}{k}" for k in "gbmv")], f"{n}n", {}),
            ("HardSwish", [f"{n}n"], f"{n}h", {}),
            ("Conv", [f"{n}h", f"{n}2", f"{n}c"], f"{n}d",
             {"group": wide, "pads": pads, "strides": [stride] * 2}),
            ("Conv", [f"{n}d", f"{n}3", f"{n}k"], f"{n}f", {}),
        ]  # fmt: skip
        weights |= {
            f"{n}1": normal(wide, 6, 1, 1, seed=i), f"{n}2": normal(wide, 1, kernel, kernel),
            f"{n}c": normal(wide), f"{n}3": normal(6, wide, 1, 1), f"{n}k": normal(6, seed=i),
            **{f"{n}{k}": np.abs(normal(wide, seed=j + i)) for j, k in enumerate("gbmv")},
        }  # fmt: skip
    rows += [("Add", ["x", "af"], "z", {}), ("Add", ["z", "bf"], "y", {})]
    return net(rows, weights, shape=("b", 6, 7, 7))


def test_convolutions_depthwise_ones_included() -> None:
    wide, _ = merged(bottlenecks(), IMAGE)
    assert ops(wide) == Counter(Conv=3, BatchNormalization=1, HardSwish=1, Add=1)
    depthwise = next(n for n in wide.graph if "group" in n.attributes)
    assert depthwise.attributes["group"].as_int() == 20
    near, _ = merged(bottlenecks(kernel_b=5), IMAGE)
    assert ops(near) == Counter(Conv=4, BatchNormalization=1, HardSwish=1, Split=1, Concat=1, Add=1)


PIECES = """
<ir_version: 9, opset_import: ["" : 20]>
net (float[b, 5, 4] x) => (float[b, 5, 2] y)
<float[2, 2] a = {1, 2, 3, 4}, float[2, 2] c = {5, 6, 7, 8}>
{
  p, q = Split<axis = AXIS, num_outputs = 2>(x)
  f = MatMul(ONE, a)
  g = MatMul(TWO, c)
  y = Add(f, g)
}
"""


def test_pieces_of_a_split_need_none() -> None:
    def pieces(axis: str, one: str, two: str) -> Counter[str]:
        text = PIECES.replace("AXIS", axis).replace("ONE", one).replace("TWO", two)
        built = ir.from_onnx_text(text)
        ShapeInferencePass()(built)
        return ops(merged(built, {"x": normal(2, 5, 4)})[0])

    assert pieces("2", "p", "q") == pieces("-1", "p", "q") == Counter(MatMul=1)
    assert pieces("2", "q", "p") == Counter(Split=1, Concat=1, MatMul=1)
    assert pieces("2", "p", "p") == Counter(Split=2, MatMul=1, Add=1)  # one value: not two pieces


SHARED: list[Row] = [
    ("MatMul", ["x", "a"], "p", {}),
    ("MatMul", ["x", "b"], "q", {}),
    ("Add", ["p", "q"], "y", {}),
]


def test_a_weight_with_other_readers_stays() -> None:
    weights = {"a": normal(8, 8), "b": normal(8, 8, seed=1)}
    assert ops(merged(net(SHARED, weights), X)[0])["MatMul"] == 1
    shared = net([*SHARED, ("MatMul", ["x", "a"], "z", {})], weights, ["y", "z"])
    same, refused = merged(shared, X)
    assert ops(same)["MatMul"] == 3
    assert refused["p"] == "its weight a has other readers"


def test_a_quantized_weight_stays() -> None:
    codes = np.arange(64, dtype=np.int8).reshape(8, 8)
    rows = [("DequantizeLinear", ["c", "scale"], "a", {}), *SHARED]
    weights = {"c": codes, "scale": np.float32(0.1), "b": normal(8, 8)}
    same, refused = merged(net(rows, weights), X)
    assert ops(same)["MatMul"] == 2
    assert refused == {"p": "its weight is quantized"}


def test_a_transposed_weight_is_merged() -> None:
    rows = [("Transpose", ["t"], "a", {}), *SHARED[:2], ("Relu", ["p"], "r", {}),
            ("Neg", ["q"], "y", {})]  # fmt: skip
    wide, _ = merged(net(rows, {"t": normal(4, 8), "b": normal(8, 3)}, ["r", "y"]), X)
    assert ops(wide) == Counter(MatMul=1, Split=1, Relu=1, Neg=1)


def test_channels_that_something_else_reads_are_not_joined() -> None:
    built = mlps(RELU)
    built.graph.outputs.append(next(v for n in built.graph for v in n.outputs if v.name == "ag"))
    wide, _ = merged(built, X)
    assert ops(wide) == Counter(MatMul=2, Split=1, Relu=1, Add=3, Concat=1)


def test_sums_that_broadcast_stay() -> None:
    rows: list[Row] = [
        ("ReduceMean", ["x", "axis"], "m", {}),
        ("MatMul", ["m", "a"], "f", {}),
        ("MatMul", ["x", "b"], "g", {}),
        ("Add", ["f", "g"], "y", {}),
    ]
    weights = {"a": normal(8, 3), "b": normal(8, 3, seed=1), "axis": np.int64([1])}
    same, _ = merged(net(rows, weights), X)
    assert ops(same)["MatMul"] == 2


def test_only_the_given_nodes() -> None:
    built = mlps(RELU)
    before = built.clone()
    MergeParallel(only=("am", "bm"))(built)
    check(before, built, X)
    assert ops(built) == Counter(MatMul=3, Split=1, Relu=1, Add=5)
    assert not MergeParallel(only=("none",))(before).modified
    assert not MergeParallel(operators=("Gemm",))(before).modified


def test_weights_are_read_when_they_are_saved() -> None:
    built = mlps(RELU)
    MergeParallel()(built)
    stored = [v.const_value for v in built.graph.initializers.values() if "merged" in v.name]
    assert len(stored) == 4
    assert all(isinstance(t, ir.LazyTensor) and t._tensor is None for t in stored)


def norms(rows: list[Row]) -> ir.Model:
    weights = {"g": normal(8), "b": normal(8, seed=1), "h": normal(8, seed=2),
               "c": normal(8, seed=3), "u": normal(8, 4), "v": normal(8, 4, seed=5)}  # fmt: skip
    return net(rows, weights, ["p", "q"])


def test_norms_that_differ_in_gain_and_bias_become_one() -> None:
    built = norms(
        [
            ("LayerNormalization", ["x", "g", "b"], "m", {}),
            ("LayerNormalization", ["x", "h", "c"], "n", {}),
            ("MatMul", ["m", "u"], "p", {}),
            ("MatMul", ["n", "v"], "q", {}),
        ]
    )
    one = built.clone()
    FoldNorms()(one)
    assert JoinEqual()(one).modified
    MergeParallel()(one)
    check(built, one, X)
    assert ops(one) == Counter(LayerNormalization=1, MatMul=1, Add=1, Split=1)


def test_norms_are_folded_only_among_the_given_nodes() -> None:
    built = norms(
        [
            ("LayerNormalization", ["x", "g"], "m", {}),
            ("LayerNormalization", ["x", "h"], "n", {}),
            ("MatMul", ["m", "u"], "p", {}),
            ("MatMul", ["n", "v"], "q", {}),
        ]
    )
    gains = [built.graph.initializers[name].const_value for name in "gh"]
    FoldNorms(only=(built.graph.node(0).outputs[0].name,))(built)
    now = [built.graph.initializers[name].const_value for name in "gh"]
    np.testing.assert_array_equal(now[0].numpy(), np.ones(8))
    assert now[1] is gains[1]


def test_random_numbers_and_outputs_are_not_joined() -> None:
    rows: list[Row] = [
        ("RandomNormalLike", ["x"], "p", {"seed": 1.0}),
        ("RandomNormalLike", ["x"], "q", {"seed": 1.0}),
        ("Relu", ["x"], "r", {}),
        ("Relu", ["x"], "s", {}),
        ("Neg", ["s"], "t", {}),
    ]
    built = net(rows, {}, ["p", "q", "r", "t"])
    JoinEqual()(built)
    assert ops(built) == Counter(RandomNormalLike=2, Relu=1, Neg=1)
    outputs = net(rows, {}, ["p", "q", "r", "s"])
    JoinEqual()(outputs)
    assert ops(outputs)["Relu"] == 2


def test_long_constants_are_told_apart() -> None:
    values = np.zeros(5000, np.float32)
    other = values.copy()
    other[2500] = 1
    rows: list[Row] = [
        ("Constant", [], name, {"value": numpy_helper.from_array(array)})
        for name, array in (("p", values), ("q", other), ("r", values))
    ]
    built = net([*rows, ("Sum", ["p", "q", "r"], "y", {})], {})
    JoinEqual()(built)
    assert ops(built)["Constant"] == 2


def test_twins_that_draw_random_numbers_stay() -> None:
    rows: list[Row] = [
        ("MatMul", ["x", "a"], "p", {}),
        ("MatMul", ["x", "b"], "q", {}),
        ("Bernoulli", ["p"], "r", {"seed": 1.0}),
        ("Bernoulli", ["q"], "s", {"seed": 1.0}),
    ]
    built = net(rows, {"a": normal(8, 3), "b": normal(8, 4)}, ["r", "s"])
    MergeParallel()(built)
    assert ops(built) == Counter(MatMul=1, Split=1, Bernoulli=2)


def trained(name: str):
    built = io.load(path_of(name))
    if name.startswith("glyph"):
        return built, {k: v[:2] for k, v in next(iter(glyphs.calibration())).items()}
    return built, {"input_ids": next(stdlib_lm.calibration())["input_ids"][:1, :32]}


# model: operators whose number falls when everything is merged, or when all pairs are
@pytest.mark.parametrize(
    ("name", "op", "before", "everywhere", "pairs"),
    [
        ("stdlib_lm", "MatMul", 109, 73, 27),
        ("glyph_vit", "MatMul", 36, 36, 14),
        ("glyph_resnet", "Conv", 16, 16, 16),
        ("glyph_mobilenet", "Conv", 37, 37, 34),
    ],
)
def test_trained_models(name, op, before, everywhere, pairs) -> None:
    built, feeds = trained(name)
    wide, _ = merged(built, feeds)
    assert (ops(built)[op], ops(wide)[op]) == (before, everywhere)
    found = adjacent_pairs(branch_tree(built.graph)).pairs
    separate = built.clone()
    ParallelBranches(found)(separate)
    small = parallel_planned(built, [ParallelPair(first=a, second=b) for a, b in found])
    check(separate, small, feeds)
    assert ops(small)[op] == pairs
