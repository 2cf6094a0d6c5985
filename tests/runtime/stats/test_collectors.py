"""Each collector against plain numpy on captured activations."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from lwqc.errors import InputError
from lwqc.runtime.stats.branch_effect import BranchEffect
from lwqc.runtime.stats.collect import collect, instrument
from lwqc.runtime.stats.column_mass import ColumnMass
from lwqc.runtime.stats.gram import Gram
from lwqc.runtime.stats.histogram import Histogram
from lwqc.runtime.stats.min_max import MinMax
from lwqc.runtime.stats.moments import Moments
from lwqc.runtime.stats.patches import Window
from lwqc.runtime.stats.shapes import Shapes

from .conftest import VALUES, capture, parse, runner

SUM_RTOL = 1e-5  # a run is summed in float32, over at most 30,000 values here
FUSED_RTOL = 1e-5  # the capturing session fuses other nodes than the instrumented one


def test_min_max(conv_net, images, activations):
    found = collect(conv_net, [MinMax(v) for v in VALUES], images, runner)
    for name, values in activations.items():
        extent = found[MinMax(name)]
        assert (extent.low, extent.high) == pytest.approx(
            (values.min(), values.max()), rel=FUSED_RTOL, abs=1e-6
        )
        assert extent.finite


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("position", [0, 7, 500])
def test_min_max_sees_what_is_not_finite(conv_net, images, bad, position):
    spoiled = images[1]["x"].copy()
    spoiled.flat[position] = bad
    found = collect(conv_net, [MinMax("x")], [images[0], {"x": spoiled}, images[2]], runner)
    assert not found[MinMax("x")].finite


def test_moments_per_tensor(conv_net, images, activations):
    found = collect(conv_net, [Moments(v) for v in VALUES], images, runner)
    for name, values in activations.items():
        moments, exact = found[Moments(name)], values.astype(np.float64)
        assert moments.count == exact.size
        assert moments.total == pytest.approx(
            exact.sum(), rel=SUM_RTOL, abs=SUM_RTOL * np.abs(exact).sum()
        )
        assert moments.squares == pytest.approx((exact**2).sum(), rel=SUM_RTOL)
        assert moments.absmax == pytest.approx(np.abs(exact).max(), rel=FUSED_RTOL)
        assert moments.variance == pytest.approx(exact.var(), rel=1e-4)


@pytest.mark.parametrize("axis", [1, -3])
def test_moments_per_channel(conv_net, images, axis):
    found = collect(conv_net, [Moments("r1", axis)], images, runner)[Moments("r1", axis)]
    runs = [r["r1"] for r in capture(conv_net, ["r1"], images)]
    values = np.concatenate([np.moveaxis(r, 1, 0).reshape(8, -1) for r in runs], axis=1)
    assert found.count == values.shape[1]
    np.testing.assert_allclose(found.total, values.sum(1, dtype=np.float64), rtol=SUM_RTOL)
    np.testing.assert_allclose(
        found.squares, (values.astype(np.float64) ** 2).sum(1), rtol=SUM_RTOL
    )
    np.testing.assert_allclose(found.absmax, values.max(1), rtol=FUSED_RTOL)


def test_moments_refuse_an_axis_that_is_not_there(conv_net, images):
    with pytest.raises(InputError, match=r"x: has rank 4; no per-channel axis 4"):
        collect(conv_net, [Moments("x", 4)], images, runner)


def test_histogram_counts_every_value_at_its_half(conv_net, images):
    counts = collect(conv_net, [Histogram("x")], images, runner)[Histogram("x")].counts
    codes = np.concatenate([i["x"].ravel() for i in images]).astype(np.float16).view(np.uint16)
    np.testing.assert_array_equal(counts, np.bincount(codes, minlength=65536))


def test_linear_histogram_agrees_with_numpy(conv_net, images, activations):
    for name in ("c1", "r1", "s"):
        values = activations[name]
        bound = np.abs(values).max()
        found = collect(conv_net, [Histogram(name)], images, runner)[Histogram(name)]
        expected, edges = np.histogram(values, 128, (-bound, bound))
        # Values move by up to 2^-12 of themselves, 1/32 of a bin; about that share changes bin.
        assert np.abs(found.linear(edges) - expected).sum() <= 2 * values.size / 32
        assert found.linear(edges).sum() == values.size
        assert found.low == pytest.approx(values.min(), rel=2**-11)
        assert found.high == pytest.approx(values.max(), rel=2**-11)


def test_histogram_of_relu_needs_no_second_run(conv_net, images):
    found = collect(conv_net, [Histogram("c1"), Histogram("r1")], images, runner)
    derived, observed = found[Histogram("c1")].relu(), found[Histogram("r1")]
    np.testing.assert_array_equal(derived.ascending, observed.ascending)


@pytest.mark.parametrize("scale", [1e-30, 1e-9, 1e6, 1e30])
def test_scaled_histogram(scale):
    model = parse(
        "<ir_version: 9, opset_import: ['': 18]> "
        "g (float[n] x) => (float[n] y) { y = Relu(x) }".replace("'", '"')
    )
    x = np.random.default_rng(0).standard_normal(10_000).astype(np.float32) * np.float32(scale)
    exponent = int(np.log2(scale))
    wanted = Histogram("x", exponent)
    found = collect(model, [wanted], [{"x": x}], runner)[wanted]
    assert found.high == pytest.approx(float(x.max()), rel=2**-11)
    assert found.quantile(0.9) == pytest.approx(float(np.quantile(x, 0.9)), rel=2**-9)


@pytest.mark.parametrize("wide", [False, True])
def test_gram(conv_net, images, wide):
    gram = Gram("f", features=4096 if wide else 0)
    found = collect(conv_net, [gram], images, runner)[gram]
    rows = np.concatenate([r["f"] for r in capture(conv_net, ["f"], images)]).astype(np.float64)
    assert found.rows == len(rows)
    np.testing.assert_allclose(found.matrix, rows.T @ rows, rtol=SUM_RTOL)


@pytest.mark.parametrize("wide", [False, True])
def test_gram_of_rows_of_several_tensors(wide):
    model = parse(
        '<ir_version: 9, opset_import: ["": 18]> g (float[n, 5] x, float[m, 2, 5] z) => '
        "(float[n, 5] y) { y = Relu(x) }"
    )
    rng = np.random.default_rng(0)
    x, z = rng.standard_normal((7, 5), np.float32), rng.standard_normal((3, 2, 5), np.float32)
    gram = Gram.together([Gram(n, features=4096 if wide else 0) for n in ("z", "x")])
    found = collect(model, [gram], [{"x": x, "z": z}], runner)[gram]
    rows = np.concatenate([x, z.reshape(-1, 5)])
    assert found.rows == 13
    np.testing.assert_allclose(found.matrix, rows.T @ rows, rtol=SUM_RTOL, atol=1e-5)


def test_gram_of_patches_of_several_tensors():
    """Also where strides are not the same: patches are as large."""
    model = parse(
        '<ir_version: 9, opset_import: ["": 18]> g (float[n, 2, 6] x, float[m, 2, 9] z) => '
        "(float[n, 2, 6] y) { y = Relu(x) }"
    )
    rng = np.random.default_rng(0)
    feeds = {"x": rng.standard_normal((2, 2, 6), np.float32)}
    feeds["z"] = rng.standard_normal((2, 2, 9), np.float32)
    x, z = Gram("x", Window(1, 2, (3,))), Gram("z", Window(1, 2, (3,), strides=(2,)))
    both = Gram.together([x, z])
    found = collect(model, [both, x, z], [feeds], runner)
    assert found[both].rows == found[x].rows + found[z].rows == 2 * 4 + 2 * 4
    exact = found[x].matrix + found[z].matrix
    np.testing.assert_allclose(found[both].matrix, exact, rtol=SUM_RTOL, atol=1e-5)


def test_gram_of_one_tensor_that_is_read_in_two_ways():
    model = parse(
        '<ir_version: 9, opset_import: ["": 18]> g (float[n, 2, 9] x) => '
        "(float[n, 2, 9] y) { y = Relu(x) }"
    )
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 2, 9), np.float32)}
    one, other = (Gram("x", Window(1, 2, (3,), strides=(n,))) for n in (1, 2))
    both = Gram.together([one, other])
    found = collect(model, [both, one, other], [feeds], runner)
    assert found[both].rows == 2 * 7 + 2 * 4
    exact = found[one].matrix + found[other].matrix
    np.testing.assert_allclose(found[both].matrix, exact, rtol=SUM_RTOL, atol=1e-5)


def test_rows_of_several_tensors_take_no_weights():
    with pytest.raises(ValueError, match="several tensors"):
        Gram.together([Gram("x", weights=ColumnMass("p", "x")), Gram("z")])


def test_rows_of_other_sizes_do_not_come_together():
    assert Gram.together([Gram("x", features=8), Gram("z", features=9)]) is None
    assert Gram.together([Gram("x", features=8), Gram("z", Window(1, 8, (1,)))]) is None
    assert Gram.together([]) is None
    assert Gram.together([Gram("x"), Gram("x")]) == Gram("x")


def test_gram_of_a_tensor_of_rank_three():
    model = parse(
        '<ir_version: 9, opset_import: ["": 18]> '
        "g (float[b, t, 5] x) => (float[b, t, 5] y) { y = Relu(x) }"
    )
    data = [
        {"x": np.random.default_rng(i).standard_normal((2, 3 + i, 5)).astype(np.float32)}
        for i in range(3)
    ]
    found = collect(model, [Gram("y")], data, runner)[Gram("y")]
    rows = np.concatenate([np.maximum(d["x"], 0).reshape(-1, 5) for d in data])
    assert found.rows == len(rows)
    np.testing.assert_allclose(found.matrix, rows.T @ rows, rtol=SUM_RTOL)


def test_shapes(conv_net, images):
    found = collect(conv_net, [Shapes("x"), Shapes("y")], images, runner)
    assert found[Shapes("x")].largest == (3, 3, 48, 48)
    assert found[Shapes("x")].last == (2, 3, 40, 40)
    assert found[Shapes("y")].last == (2, 10)


def test_shapes_are_not_those_that_a_file_declares():
    built = parse("""<ir_version: 8, opset_import: ["": 17]>
        net (float[n,4,1,1] x) => (float[n,4] y) { f = Flatten(x) y = Relu(f) }""")
    built.graph[0].outputs[0].shape = ir.Shape([2**31, 4])
    feeds = {"x": np.ones((3, 4, 1, 1), np.float32)}
    assert collect(built, [Shapes("f")], [feeds], runner)[Shapes("f")].last == (3, 4)
    copy, _ = instrument(built, [Shapes("f")])
    (node,) = [n for n in copy.graph if n.op_type == "Flatten"]
    assert node.outputs[0].shape == [None, None]


@pytest.mark.parametrize(
    "wanted",
    [
        MinMax("s"),
        Moments("s", 1),
        Histogram("s"),
        Gram("f"),
        BranchEffect("r1", output="r2", axis=1),
        Shapes("s"),
    ],
    ids=lambda c: type(c).__name__,
)
def test_merging_is_associative_and_equals_one_run(conv_net, images, wanted):
    part = [collect(conv_net, [wanted], [i], runner)[wanted] for i in images[:3]]
    whole = collect(conv_net, [wanted], images[:3], runner)[wanted]
    for merged in ((part[0] + part[1]) + part[2], part[0] + (part[1] + part[2])):
        for field in wanted_fields(whole):
            np.testing.assert_allclose(getattr(merged, field), getattr(whole, field), rtol=1e-14)


def wanted_fields(result) -> list[str]:
    return list(result.__dataclass_fields__)
