import numpy as np
import onnx_ir as ir
import pytest

from lwqc.graph.sites import find_sites
from lwqc.model import io
from tests.build import model, normal


def only_site(built):
    analysis = find_sites(built)
    assert [s.reason for s in analysis.skipped] == []
    assert len(analysis.sites) == 1
    return analysis.sites[0]


@pytest.mark.parametrize(
    ("rows", "weight", "n", "k"),
    [
        ([("MatMul", ["x", "w"], "y", {})], normal(40, 50), 50, 40),
        ([("Gemm", ["x", "w"], "y", {})], normal(40, 50), 50, 40),
        ([("Gemm", ["x", "w"], "y", {"transB": 1})], normal(50, 40), 50, 40),
        (
            [("Transpose", ["w"], "t", {"perm": [1, 0]}), ("MatMul", ["x", "t"], "y", {})],
            normal(50, 40),
            50,
            40,
        ),
        ([("Identity", ["w"], "t", {}), ("MatMul", ["x", "t"], "y", {})], normal(40, 50), 50, 40),
        (
            [("Cast", ["w"], "t", {"to": 1}), ("MatMul", ["x", "t"], "y", {})],
            normal(40, 50).astype(np.float16),
            50,
            40,
        ),
    ],
    ids=["matmul", "gemm", "gemm-transB", "transpose", "identity", "cast"],
)
def test_linear_sites(rows, weight, n, k):
    site = only_site(model(rows, {"w": weight}, {"x": ["b", 40]}, ["y"]))
    assert (site.name, site.n, site.k) == ("w", n, k)
    expected = weight.T if weight.shape == (40, 50) else weight
    assert np.array_equal(site.matrix(io.read_array), expected.astype(np.float32))


@pytest.mark.parametrize("group", [1, 4])
def test_convolutions(group):
    built = model(
        [("Conv", ["x", "w"], "y", {"group": group})],
        {"w": normal(16, 16 // group, 3, 3)},
        {"x": [1, 16, 8, 8]},
        ["y"],
    )
    site = only_site(built)
    assert (site.op, site.n, site.k, site.groups) == ("Conv", 16, 16 // group * 9, group)


def test_embedding():
    built = model(
        [("Gather", ["w", "i"], "y", {})], {"w": normal(50, 40)}, {"i": ["b", 3]}, ["y"],
        types={"i": 7},
    )  # fmt: skip
    assert only_site(built).ops == {"Gather"}


def test_tied_weights_are_one_site_with_two_uses():
    built = model(
        [
            ("Gather", ["w", "i"], "e", {}),
            ("Transpose", ["w"], "t", {"perm": [1, 0]}),
            ("MatMul", ["e", "t"], "y", {}),
        ],
        {"w": normal(50, 40)},
        {"i": ["b", 3]},
        ["y"],
        types={"i": 7},
    )
    site = only_site(built)
    assert site.ops == {"Gather", "MatMul"}
    assert [u.transposed for u in site.uses] == [False, True]


def test_weights_behind_dequantize_linear():
    codes = np.random.default_rng(0).integers(-100, 100, (40, 50)).astype(np.int8)
    scale = np.abs(normal(50)) + 0.1
    built = model(
        [
            ("DequantizeLinear", ["q", "s", "z"], "w", {"axis": 1}),
            ("MatMul", ["x", "w"], "y", {}),
        ],
        {"q": codes, "s": scale, "z": np.zeros(50, np.int8)},
        {"x": ["b", 40]},
        ["y"],
    )
    site = find_sites(built).sites[0]
    assert site.name == "q"
    assert np.allclose(site.matrix(io.read_array), (codes * scale).T)


@pytest.mark.parametrize(
    ("rows", "weights", "reason"),
    [
        ([("MatMul", ["w", "x"], "y", {})], {"w": normal(50, 40)}, "left operand"),
        ([("MatMul", ["x", "w"], "y", {})], {"w": normal(2, 40, 50)}, "batch of matrices"),
        ([("Gemm", ["x", "w"], "y", {"alpha": 2.0})], {"w": normal(40, 50)}, "alpha, beta"),
        ([("Mul", ["x", "w"], "y", {})], {"w": normal(40, 40)}, "no low-bit form of Mul"),
    ],
    ids=["left", "batched", "alpha", "elementwise"],
)
def test_what_takes_no_format_is_listed_with_its_reason(rows, weights, reason):
    analysis = find_sites(model(rows, weights, {"x": [40, 40]}, ["y"]))
    assert not analysis.sites
    assert [reason in s.reason for s in analysis.skipped] == [True]


def opposite(shape, *, through_reshape=False):
    first = [("MatMul", ["x", "w"], "h", {}), ("Transpose", ["w"], "t", {"perm": [1, 0]})]
    if through_reshape:
        first.append(("Reshape", ["t", "s"], "r", {}))
    return model(
        [*first, ("MatMul", ["h", "r" if through_reshape else "t"], "y", {})],
        {"w": normal(*shape), "s": np.array(shape[::-1])},
        {"x": ["b", shape[0]]},
        ["y"],
    )


@pytest.mark.parametrize("shape", [(40, 50), (40, 40)], ids=["oblong", "square"])
def test_opposite_orientations_of_one_tensor_are_one_matrix_without_kernels(shape):
    (site,) = find_sites(opposite(shape)).sites
    assert site.both_ways
    assert [u.transposed for u in site.uses] == [True, False]


@pytest.mark.parametrize("shape", [(40, 50), (40, 40)], ids=["oblong", "square"])
def test_orientations_that_cannot_be_told_are_refused(shape):
    analysis = find_sites(opposite(shape, through_reshape=True))
    assert not analysis.sites
    assert "orientations" in analysis.skipped[0].reason


def test_an_initializer_that_is_also_an_input_is_no_weight():
    built = model([("MatMul", ["x", "w"], "y", {})], {"w": normal(40, 50)}, {"x": ["b", 40]}, ["y"])
    weight = built.graph.initializers["w"]
    built.graph.inputs.append(weight)
    assert not find_sites(built).sites


def test_every_large_float_tensor_of_the_zoo_is_a_site_or_has_a_reason(skeleton):
    built = ir.load(skeleton)
    analysis = find_sites(built)
    named = {s.name for s in analysis.sites} | {s.name for s in analysis.skipped}
    large = {
        value.name
        for value in built.graph.initializers.values()
        if value.dtype == ir.DataType.FLOAT and np.prod(list(value.shape)) >= 1024 and value.uses()
    }
    assert large <= named
    assert analysis.sites


@pytest.mark.parametrize("shape", [(0, 50), (40, 0)])
def test_a_weight_without_values_is_no_site(shape):
    built = model(
        [("MatMul", ["x", "w"], "y", {})], {"w": normal(*shape)}, {"x": ["b", shape[0]]}, ["y"]
    )
    assert find_sites(built).sites == ()
