"""Layers behind removed channels, refitted: hand-sliced models, run before and after."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from lwqc.compile.steps.batch_norm import reestimate_batch_norm
from lwqc.compile.steps.reconstruct import reconstruct
from lwqc.graph.consumers import find_consumers
from lwqc.runtime.session import Session, statistics_session
from tests.build import model, normal

LOW_RANK = 4  # rank of the filters of the layer whose channels are removed: they are correlated


def correlated(out, *rest, seed, noise=0.1):
    mix, base = normal(out, LOW_RANK, seed=seed), normal(LOW_RANK, *rest, seed=seed + 1)
    return np.tensordot(mix, base, 1) * 0.2 + noise * normal(out, *rest, seed=seed + 2) * 0.2


def prune(original, slices, attributes=None):
    """A copy without the slices' complement; attributes: (node, name) -> new integer."""
    pruned = original.clone()
    for name, keep in slices.items():
        value = pruned.graph.initializers[name]
        array = value.const_value.numpy()
        for axis, kept in keep.items():
            array = np.take(array, kept, axis)
        value.const_value = ir.tensor(np.ascontiguousarray(array), name=name)
        value.shape = ir.Shape(array.shape)
    for node in pruned.graph:
        for output in node.outputs:
            output.shape = None if output.shape is None else ir.Shape([None] * output.shape.rank())
        for (owner, name), value in (attributes or {}).items():
            if node.name == owner:
                node.attributes[name] = ir.AttrInt64(name, value)
    return pruned


def error(original, changed, data, output="y"):
    """Squared error relative to the variance of the original output."""
    wanted = np.concatenate([Session(original)(feeds)[output] for feeds in data])
    found = np.concatenate([Session(changed)(feeds)[output] for feeds in data])
    return float(((found - wanted) ** 2).sum() / ((wanted - wanted.mean(0)) ** 2).sum())


def conv_net():
    rows = [
        ("Conv", ["x", "w1", "b1"], "c1", {"pads": [1] * 4}),
        ("Relu", ["c1"], "r1", {}),
        ("Conv", ["r1", "w2", "b2"], "c2", {"pads": [1] * 4, "strides": [2, 2]}),
        ("Relu", ["c2"], "r2", {}),
        ("GlobalAveragePool", ["r2"], "p", {}),
        ("Flatten", ["p"], "f", {}),
        ("Gemm", ["f", "w3", "b3"], "y", {"transB": 1}),
    ]
    weights = {
        "w1": correlated(16, 3, 3, 3, seed=1),
        "b1": normal(16, seed=4, scale=0.3),
        "w2": correlated(24, 16, 3, 3, seed=5),
        "b2": normal(24, seed=8, scale=0.3),
        "w3": normal(10, 24, seed=9),
        "b3": normal(10, seed=10),
    }
    return model(rows, weights, {"x": ["n", 3, 12, 12]}, ["y"])


def images(count=6, seed=100):
    return [{"x": normal(16, 3, 12, 12, seed=seed + i)} for i in range(count)]


KEEP1, KEEP2 = np.arange(0, 16, 2), np.arange(0, 24, 2)
CONV_SLICES = {
    "w1": {0: KEEP1},
    "b1": {0: KEEP1},
    "w2": {0: KEEP2, 1: KEEP1},
    "b2": {0: KEEP2},
    "w3": {1: KEEP2},
}


def test_a_conv_net_is_repaired_on_data_it_has_not_seen():
    original, test = conv_net(), images(seed=900)
    sliced = prune(original, CONV_SLICES)
    errors = {"none": error(original, sliced, test)}
    for method in ("bias", "refit"):
        pruned = prune(original, CONV_SLICES)
        steps = []
        skipped = reconstruct(
            original, pruned, CONV_SLICES, images(), statistics_session,
            method=method, progress=lambda done, total, s=steps: s.append((done, total)),
        )  # fmt: skip
        assert skipped == []
        assert steps == [(1, 2), (2, 2)]
        errors[method] = error(original, pruned, test)
    print(errors)
    assert errors["refit"] < 0.5 * errors["bias"]
    assert errors["bias"] < 0.1 * errors["none"]


def test_consumers_of_the_conv_net():
    original = conv_net()
    found = find_consumers(original, prune(original, CONV_SLICES), CONV_SLICES)
    assert [(c.name, c.depth, c.narrowed) for c in found.consumers] == [
        ("n_c2", 0, True),
        ("n_y", 1, True),
    ]
    assert found.skipped == []
    np.testing.assert_array_equal(found.consumers[0].rows, KEEP2)


def test_layers_further_down_are_refitted_too():
    original = conv_net()
    slices = {"w1": {0: KEEP1}, "b1": {0: KEEP1}, "w2": {1: KEEP1}}
    errors = {}
    for every in (False, True):
        pruned = prune(original, slices)
        before = pruned.graph.initializers["w3"].const_value
        reconstruct(original, pruned, slices, images(), statistics_session, all_layers=every)
        assert (pruned.graph.initializers["w3"].const_value is before) is not every
        errors[every] = error(original, pruned, images(seed=900))
    print(errors)
    assert errors[True] < errors[False]


def test_a_linear_combination_is_restored():
    base = normal(6, 5, 3, 3, seed=1)
    mix = normal(2, 6, seed=2)
    b1 = normal(6, seed=3)
    w1 = np.concatenate([base, np.tensordot(mix, base, 1)])
    rows = [
        ("Conv", ["x", "w1", "b1"], "c1", {}),
        ("Conv", ["c1", "w2", "b2"], "y", {"dilations": [2, 2], "pads": [1, 2, 0, 1]}),
    ]
    weights = {
        "w1": w1,
        "b1": np.r_[b1, mix @ b1],
        "w2": normal(4, 8, 3, 3, seed=4),
        "b2": normal(4, seed=5),
    }
    original = model(rows, weights, {"x": ["n", 5, 9, 9]}, ["y"])
    keep = np.arange(6)
    slices = {"w1": {0: keep}, "b1": {0: keep}, "w2": {1: keep}}
    pruned = prune(original, slices)
    data = [{"x": normal(8, 5, 9, 9, seed=i)} for i in range(10, 14)]
    before = error(original, pruned, data)
    reconstruct(original, pruned, slices, data, statistics_session, damp=0.0)
    after = error(original, pruned, data)
    print(before, after)
    assert after < 1e-4 * before


def two_layers(second, weights, shape, **kwargs):
    rows = [("MatMul", ["x", "w1"], "h", {}), ("Relu", ["h"], "r", {}), *second]
    w1 = correlated(16, 8, seed=1).T.copy()
    return model(rows, {"w1": w1, **weights}, {"x": shape}, ["y"], **kwargs)


MATRIX_FORMS = {
    "MatMul and Add": ([("MatMul", ["r", "w2"], "m", {}), ("Add", ["b2", "m"], "y", {})], False),
    "MatMul": ([("MatMul", ["r", "w2"], "y", {})], False),
    "Transpose": (
        [("Transpose", ["w2"], "t", {}), ("MatMul", ["r", "t"], "m", {}),
         ("Add", ["m", "b2"], "y", {})],
        True,
    ),
    "Identity, Transpose": (
        [("Identity", ["w2"], "i", {}), ("Transpose", ["i"], "t", {"perm": [1, 0]}),
         ("MatMul", ["r", "t"], "y", {})],
        True,
    ),
    "Gemm": ([("Gemm", ["r", "w2", "b2"], "y", {})], False),
    "Gemm transB": ([("Gemm", ["r", "w2", "b2"], "y", {"transB": 1})], True),
    "Gemm without bias": ([("Gemm", ["r", "w2"], "y", {"transB": 1})], True),
}  # fmt: skip


@pytest.mark.parametrize("form", MATRIX_FORMS)
def test_forms_of_a_matrix_product(form):
    second, transposed = MATRIX_FORMS[form]
    w2 = normal(16, 6, seed=7)
    weights = {"w2": w2.T.copy() if transposed else w2}
    if any("b2" in row[1] for row in second):
        weights["b2"] = normal(6, seed=8)
    gemm = form.startswith("Gemm")
    shape = [40, 8] if gemm else [3, 20, 8]
    original = two_layers(second, weights, shape)
    keep = np.arange(0, 16, 2)
    slices = {"w1": {1: keep}, "w2": {1 if transposed else 0: keep}}
    pruned = prune(original, slices)
    data = [{"x": normal(*shape, seed=20 + i)} for i in range(6)]
    test = [{"x": normal(*shape, seed=80 + i)} for i in range(6)]
    before = error(original, pruned, test)
    assert reconstruct(original, pruned, slices, data, statistics_session) == []
    assert error(original, pruned, test) < 0.2 * before
    if "b2" in weights:
        assert (pruned.graph.initializers["b2"].const_value.numpy() != weights["b2"]).all()
    assert original.graph.initializers["w2"].const_value.shape == weights["w2"].shape


def grouped_net(groups):
    rows = [
        ("Conv", ["x", "w1", "b1"], "h", {}),
        ("Relu", ["h"], "r", {}),
        ("Conv", ["r", "w2", "b2"], "g", {"group": groups, "pads": [1, 1]}),
        ("Conv", ["g", "w3"], "y", {}),
    ]
    weights = {
        "w1": correlated(12, 4, 3, seed=1),
        "b1": normal(12, seed=2, scale=0.1),
        "w2": normal(12, 12 // groups, 3, seed=3),
        "b2": normal(12, seed=4),
        "w3": normal(5, 12, 1, seed=5),
    }
    return model(rows, weights, {"x": ["n", 4, 20]}, ["y"])


GROUP_CASES = {
    "channels of each group": (
        2, np.r_[0:6:2, 7:12:2], {1: np.arange(0, 6, 2)}, np.arange(12), 2,
    ),
    "whole groups": (3, np.r_[0:4, 8:12], {}, np.r_[0:4, 8:12], 2),
    "depthwise": (12, np.arange(0, 12, 2), {}, np.arange(0, 12, 2), 6),
}  # fmt: skip


@pytest.mark.parametrize("case", GROUP_CASES)
def test_grouped_convolutions(case):
    groups, inputs, second, outputs, left = GROUP_CASES[case]
    if case == "channels of each group":  # the same channels of both groups
        inputs = np.r_[0:6:2, 6:12:2]
    original = grouped_net(groups)
    slices = {"w1": {0: inputs}, "b1": {0: inputs}, "w2": {0: outputs, **second}}
    slices |= {"b2": {0: outputs}, "w3": {1: outputs}}
    pruned = prune(original, slices, {("n_g", "group"): left})
    data = [{"x": normal(8, 4, 20, seed=20 + i)} for i in range(6)]
    before = error(original, pruned, data)
    assert reconstruct(original, pruned, slices, data, statistics_session) == []
    after = error(original, pruned, data)
    print(case, before, after)
    assert after < 0.5 * before


def test_layers_side_by_side_share_a_run():
    rows = [
        ("MatMul", ["x", "w1"], "h", {}),
        ("Relu", ["h"], "r", {}),
        ("MatMul", ["r", "wq"], "q", {}),
        ("MatMul", ["r", "wk"], "k", {}),
        ("Mul", ["q", "k"], "m", {}),
        ("MatMul", ["m", "wo"], "y", {}),
    ]
    weights = {"w1": normal(8, 16), "wq": normal(16, 6), "wk": normal(16, 6), "wo": normal(6, 4)}
    original = model(rows, weights, {"x": ["n", 8]}, ["y"])
    keep = np.arange(10)
    slices = {"w1": {1: keep}, "wq": {0: keep}, "wk": {0: keep}}
    pruned = prune(original, slices)
    made = []

    def counting(instrumented):
        made.append(instrumented)
        return statistics_session(instrumented)

    reconstruct(original, pruned, slices, [{"x": normal(30, 8)}], counting)
    assert len(made) == 2
    matrices = [v for v in made[0].graph.outputs if v.producer().op_type == "MatMul"]
    assert len(matrices) == 2  # q and k read the same tensor: one pair of sums


def test_a_bias_that_others_read_is_copied():
    second = [
        ("Gemm", ["r", "w2", "b"], "g", {}),
        ("Add", ["g", "b"], "y", {}),
    ]
    original = two_layers(second, {"w2": normal(16, 6, seed=7), "b": normal(6)}, [40, 8])
    keep = np.arange(8)
    slices = {"w1": {1: keep}, "w2": {0: keep}}
    pruned = prune(original, slices)
    reconstruct(original, pruned, slices, [{"x": normal(40, 8)}], statistics_session)
    gemm = next(n for n in pruned.graph if n.op_type == "Gemm")
    assert gemm.inputs[2].name == "b/n_g"
    np.testing.assert_array_equal(pruned.graph.initializers["b"].const_value.numpy(), normal(6))


def skipped_reasons(second, weights, slices, **kwargs):
    original = two_layers(second, weights, [40, 8], **kwargs)
    keep = np.arange(8)
    slices = {"w1": {1: keep}, **{name: {axis: keep} for name, axis in slices.items()}}
    pruned = prune(original, slices)
    data = [{"x": normal(40, 8)}]
    skipped = reconstruct(original, pruned, slices, data, statistics_session)
    return {s.name: s.reason for s in skipped}


def test_what_cannot_be_refitted_is_named():
    square = normal(16, 16)
    twice = [("MatMul", ["r", "w2"], "m", {}), ("MatMul", ["r", "w2"], "k", {}),
             ("Add", ["m", "k"], "y", {})]  # fmt: skip
    reason = "shares its weight w2 with other nodes"
    assert skipped_reasons(twice, {"w2": square}, {"w2": 0}) == {"n_m": reason, "n_k": reason}
    quantized = [("DequantizeLinear", ["w2", "s"], "d", {}), ("MatMul", ["r", "d"], "y", {})]
    weights = {"w2": (square * 40).astype(np.int8), "s": np.float32(0.02).reshape(())}
    found = skipped_reasons(quantized, weights, {"w2": 0})
    assert found == {"n_y": "its weight is quantized"}
    scaled = [("Gemm", ["r", "w2"], "y", {"alpha": 2.0})]
    found = skipped_reasons(scaled, {"w2": square}, {"w2": 0})
    assert found == {"n_y": "its Gemm has alpha, beta or transA set"}
    left = [("Transpose", ["r"], "t", {}), ("MatMul", ["w2", "t"], "y", {})]
    found = skipped_reasons(left, {"w2": square}, {"w2": 1})
    assert found == {"n_y": "its weight is the left operand"}
    einsum = [("Einsum", ["r", "w2"], "y", {"equation": "ab,bc->ac"})]
    found = skipped_reasons(einsum, {"w2": square}, {"w2": 0})
    assert found == {"n_y": "no refit of Einsum is known"}


def test_values_that_are_not_finite_leave_the_layer():
    original = two_layers([("MatMul", ["r", "w2"], "y", {})], {"w2": normal(16, 6)}, [40, 8])
    slices = {"w1": {1: np.arange(8)}, "w2": {0: np.arange(8)}}
    pruned = prune(original, slices)
    data = [{"x": np.full((40, 8), np.inf, np.float32)}]
    skipped = reconstruct(original, pruned, slices, data, statistics_session)
    assert [s.reason for s in skipped] == ["its input is empty or not finite on the data"]


def test_without_a_bias_there_is_nothing_to_correct():
    original = two_layers([("MatMul", ["r", "w2"], "y", {})], {"w2": normal(16, 6)}, [40, 8])
    slices = {"w1": {1: np.arange(8)}, "w2": {0: np.arange(8)}}
    pruned = prune(original, slices)
    data = [{"x": normal(40, 8)}]
    skipped = reconstruct(original, pruned, slices, data, statistics_session, method="bias")
    assert [s.reason for s in skipped] == ["has no bias to correct"]


def norm_net():
    norm = ["scale", "shift", "mean", "var"]
    rows = [
        ("Conv", ["x", "w1"], "c1", {}),
        ("BatchNormalization", ["c1", *norm], "n1", {}),
        ("Relu", ["n1"], "r1", {}),
        ("Conv", ["r1", "w2"], "c2", {}),
        ("BatchNormalization", ["c2", *norm], "y", {}),
    ]
    weights = {"w1": normal(4, 3, 3, 3), "w2": normal(4, 4, 3, 3), "scale": normal(4, seed=5)}
    weights |= {"shift": normal(4, seed=6), "mean": np.zeros(4, np.float32)}
    weights["var"] = np.ones(4, np.float32)
    return model(rows, weights, {"x": ["n", 3, 12, 12]}, ["y"])


def test_batch_normalisation_is_estimated_anew():
    built, data = norm_net(), images()
    assert reestimate_batch_norm(built, data, statistics_session) == 2
    first, second = (n for n in built.graph if n.op_type == "BatchNormalization")
    assert first.inputs[3].name != second.inputs[3].name  # they shared theirs
    probe = built.clone()
    probe.graph.outputs[:] = [n.outputs[0] for n in probe.graph if n.op_type == "Conv"]
    runs = [Session(probe)(feeds) for feeds in data]
    for node, name in ((first, "c1"), (second, "c2")):
        values = np.concatenate([r[name] for r in runs]).astype(np.float64)
        # The second sees its input under batch statistics: 16 images are near the whole set.
        rtol = 1e-5 if node is first else 0.05
        mean, variance = (node.inputs[i].const_value.numpy() for i in (3, 4))
        np.testing.assert_allclose(mean, values.mean((0, 2, 3)), rtol=rtol, atol=rtol)
        np.testing.assert_allclose(variance, values.var((0, 2, 3)), rtol=rtol)


def test_a_model_without_batch_normalisation():
    assert reestimate_batch_norm(conv_net(), images(1), statistics_session) == 0
