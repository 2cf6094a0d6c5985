"""Gram matrices of patches and of pairs, against an im2col in plain numpy."""

from __future__ import annotations

import itertools

import numpy as np
import onnx_ir as ir
import pytest

from lwqc.errors import InputError
from lwqc.runtime.stats.collect import collect
from lwqc.runtime.stats.cross_gram import CrossGram
from lwqc.runtime.stats.gram import Gram
from lwqc.runtime.stats.moments import Moments
from lwqc.runtime.stats.patches import conv_window
from lwqc.runtime.stats.side_by_side import PREFIX, side_by_side
from tests.build import model, normal

from .conftest import parse, runner

RTOL = 2e-5  # a run is summed in float32, over at most 3,000 rows here


def patches(x, weight, strides, pads, dilations, groups):
    """[groups, rows, features]: what each output position multiplies with its weights."""
    kernel = weight[2:]
    ends = pads[len(kernel) :]
    x = np.pad(x, [(0, 0), (0, 0), *zip(pads, ends, strict=False)])
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    starts = [
        range(0, n - span + 1, s) for n, span, s in zip(x.shape[2:], spans, strides, strict=True)
    ]
    rows = []
    for sample, corner in itertools.product(x, itertools.product(*starts)):
        cut = tuple(
            slice(c, c + span, d) for c, span, d in zip(corner, spans, dilations, strict=True)
        )
        rows.append(sample[(slice(None), *cut)].reshape(groups, -1))
    return np.stack(rows, 1).astype(np.float64)


def conv(weight, size, **attributes):
    channels = weight[1] * attributes.get("group", 1)
    return model(
        [("Conv", ["x", "w"], "y", attributes)],
        {"w": normal(*weight)},
        {"x": ["n", channels, *size]},
        ["y"],
    )


CASES = {
    "plain": ((4, 3, 3, 3), (9, 8), {}, ([1, 1], [0, 0, 0, 0], [1, 1])),
    "pads": ((4, 3, 3, 2), (7, 8), {"pads": [1, 0, 2, 1]}, ([1, 1], [1, 0, 2, 1], [1, 1])),
    "strides": ((4, 3, 3, 3), (9, 8), {"strides": [2, 3]}, ([2, 3], [0, 0, 0, 0], [1, 1])),
    "dilations": ((4, 3, 3, 3), (9, 9), {"dilations": [2, 3]}, ([1, 1], [0, 0, 0, 0], [2, 3])),
    "groups": ((6, 2, 3, 3), (6, 7), {"group": 3, "pads": [1] * 4}, ([1, 1], [1] * 4, [1, 1])),
    "depthwise": ((5, 1, 3, 3), (6, 7), {"group": 5}, ([1, 1], [0] * 4, [1, 1])),
    "pointwise": ((4, 5, 1, 1), (6, 7), {}, ([1, 1], [0] * 4, [1, 1])),
    "strided pointwise": ((4, 5, 1, 1), (6, 7), {"strides": [2, 2]}, ([2, 2], [0] * 4, [1, 1])),
    "same": ((4, 2, 3, 3), (8, 8), {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
             ([2, 2], [0, 0, 1, 1], [1, 1])),
    "1-D": ((4, 3, 5), (20,), {"strides": [2], "pads": [1, 2]}, ([2], [1, 2], [1])),
    "3-D": ((4, 2, 2, 3, 2), (4, 5, 6), {"pads": [0, 1, 0, 1, 0, 1]},
            ([1] * 3, [0, 1, 0, 1, 0, 1], [1] * 3)),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_gram_of_patches(case):
    weight, size, attributes, (strides, pads, dilations) = CASES[case]
    built = conv(weight, size, **attributes)
    groups = attributes.get("group", 1)
    x = [normal(2, weight[1] * groups, *size, seed=i) for i in range(2)]
    window = conv_window(built.graph[0], weight)
    wanted = Gram("x", window)
    found = collect(built, [wanted], [{"x": v} for v in x], runner)[wanted]
    rows = np.concatenate([patches(v, weight, strides, pads, dilations, groups) for v in x], 1)
    assert found.rows == rows.shape[1]
    np.testing.assert_allclose(
        found.matrix, rows.transpose(0, 2, 1) @ rows, rtol=RTOL, atol=RTOL * rows.shape[1]
    )
    assert found.matrix.shape == (groups, window.features, window.features)
    # The features are in the weight's own order: its outputs are those of the convolution.
    w = built.graph.initializers["w"].const_value.numpy().reshape(groups, -1, window.features)
    outputs = np.einsum("grk,gok->rgo", rows, w)
    exact = [runner(built)({"x": v})["y"] for v in x]
    exact = np.concatenate([np.moveaxis(y, 1, -1).reshape(-1, weight[0]) for y in exact])
    np.testing.assert_allclose(outputs.reshape(exact.shape), exact, rtol=1e-4, atol=1e-4)


def test_cross_gram_of_rows():
    net = "g (float[b, t, 5] x, float[b, t, 3] z) => (float[b, t, 5] y) { y = Relu(x) }"
    built = parse(f'<ir_version: 9, opset_import: ["": 18]> {net}')
    shapes = [(2, 3), (1, 7), (4, 2)]
    data = [{"x": normal(*s, 5, seed=1), "z": normal(*s, 3, seed=2)} for s in shapes]
    wanted = CrossGram("y", "z")
    found = collect(built, [wanted], data, runner)[wanted]
    left = np.concatenate([np.maximum(d["x"], 0).reshape(-1, 5) for d in data]).astype(np.float64)
    right = np.concatenate([d["z"].reshape(-1, 3) for d in data]).astype(np.float64)
    assert found.rows == len(left)
    for value, exact in [
        (found.left, left.sum(0)),
        (found.right, right.sum(0)),
        (found.cross, left.T @ right),
        (found.gram, right.T @ right),
    ]:
        np.testing.assert_allclose(value, exact[None], rtol=RTOL, atol=RTOL)
    means = CrossGram("y", "z", means_only=True)
    only = collect(built, [means], data, runner)[means]
    np.testing.assert_allclose(only.left, found.left, rtol=RTOL)
    assert only.gram.size == only.cross.size == 0


def test_cross_gram_of_a_convolution_that_lost_groups():
    before, after = conv((6, 2, 3, 3), (7, 6), group=3), conv((4, 1, 3, 3), (7, 6), group=2)
    joined = model(
        [
            ("Conv", ["x", "w"], "y", {"group": 3}),
            ("Conv", ["z", "v"], "u", {"group": 2}),
        ],
        {"w": normal(6, 2, 3, 3), "v": normal(4, 1, 3, 3)},
        {"x": ["n", 6, 7, 6], "z": ["n", 2, 7, 6]},
        ["y", "u"],
    )
    data = [{"x": normal(2, 6, 7, 6, seed=i), "z": normal(2, 2, 7, 6, seed=9 + i)} for i in (0, 1)]
    wanted = CrossGram(
        "x",
        "z",
        conv_window(before.graph[0], (6, 2, 3, 3)),
        conv_window(after.graph[0], (4, 1, 3, 3)),
        kept_groups=(0, 2),
    )
    found = collect(joined, [wanted], data, runner)[wanted]
    plain = ([1, 1], [0] * 4, [1, 1])
    left = np.concatenate([patches(d["x"], (6, 2, 3, 3), *plain, 3) for d in data], 1)[[0, 2]]
    right = np.concatenate([patches(d["z"], (4, 1, 3, 3), *plain, 2) for d in data], 1)
    assert found.cross.shape == (2, 18, 9)
    np.testing.assert_allclose(
        found.cross, left.transpose(0, 2, 1) @ right, rtol=RTOL, atol=RTOL * left.shape[1]
    )
    np.testing.assert_allclose(found.left, left.sum(1), rtol=RTOL, atol=1e-3)


def test_side_by_side_runs_both(conv_net, images):
    other = conv_net.clone()
    w = other.graph.initializers["w1"]
    w.const_value = ir.tensor(w.const_value.numpy() * 2, name="w1")
    both = side_by_side(conv_net, other)
    assert PREFIX + "w1" in both.graph.initializers
    assert PREFIX + "w2" not in both.graph.initializers  # the same tensor: stored once
    found = collect(both, [Moments("c1"), Moments(PREFIX + "c1")], images, runner)
    alone = collect(other, [Moments("c1")], images, runner)
    assert found[Moments(PREFIX + "c1")].total == pytest.approx(alone[Moments("c1")].total)
    assert found[Moments("c1")].total != pytest.approx(alone[Moments("c1")].total)
    for name, value in runner(both)(images[0]).items():
        source = other if name.startswith(PREFIX) else conv_net
        expected = runner(source)(images[0])[name.removeprefix(PREFIX)]
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-5)
    assert w.const_value.name == "w1"


def test_side_by_side_renames_bodies():
    text = """
    <ir_version: 9, opset_import: ["": 18]>
    g (float[2] x, bool b) => (float[2] y) {
      h = Relu(x)
      y = If (b) <then_branch = t () => (float[2] p) { q = Neg(h)  p = Abs(q) },
                  else_branch = e () => (float[2] r) { r = Neg(h) }>
    }
    """
    built = parse(text)
    both = side_by_side(built, built.clone())
    x = np.asarray([1.0, -2.0], np.float32)
    for flag in (True, False):
        found = runner(both)({"x": x, "b": np.asarray(flag)})
        np.testing.assert_array_equal(found["y"], found[PREFIX + "y"])


def test_side_by_side_refuses_other_inputs(conv_net):
    other = conv_net.clone()
    other.graph.inputs[0].name = "z"
    with pytest.raises(InputError, match="inputs differ"):
        side_by_side(conv_net, other)
    other = conv_net.clone()
    other.opset_imports[""] = 19
    with pytest.raises(InputError, match=r"imports opset 19 of 'ai\.onnx', the original 18"):
        side_by_side(conv_net, other)
