"""Layers are refitted level by level from kept activations: as if each run began at the start."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest

from lwqc.compile.steps import reconstruct as module
from lwqc.compile.steps.reconstruct import reconstruct
from lwqc.model.limits import Limits, limits, set_limits
from lwqc.runtime.session import statistics_session
from lwqc.runtime.stats import paired_run
from lwqc.runtime.stats.collect import collect
from lwqc.runtime.stats.side_by_side import PREFIX, other_name, side_by_side
from tests.build import model, normal

from .test_reconstruct import correlated, prune

HALF, WIDE = np.arange(0, 12, 2), np.arange(0, 24, 3)


def residual_net():
    """Two residual branches; the second one is gated by an input that nothing before it reads."""
    rows = [
        ("MatMul", ["x", "w0"], "s", {}),
        ("MatMul", ["s", "a1"], "p", {}),
        ("Add", ["p", "b1"], "q", {}),
        ("Relu", ["q"], "r", {}),
        ("MatMul", ["r", "a2"], "t", {}),
        ("Add", ["s", "t"], "u", {}),
        ("MatMul", ["u", "a3"], "v", {}),
        ("Tanh", ["v"], "w", {}),
        ("Mul", ["w", "gate"], "z", {}),
        ("MatMul", ["z", "a4"], "h", {}),
        ("Add", ["u", "h"], "i", {}),
        ("Gemm", ["i", "w5", "b5"], "y", {}),
    ]
    weights = {
        "w0": normal(8, 16, scale=0.3), "a1": correlated(24, 16, seed=1).T.copy(),
        "b1": normal(24, seed=2), "a2": normal(24, 16, seed=3), "a3": normal(16, 24, seed=4),
        "a4": normal(24, 16, seed=5), "w5": normal(16, 4, seed=6), "b5": normal(4, seed=7),
    }  # fmt: skip
    slices = {"a1": {1: WIDE}, "b1": {0: WIDE}, "a2": {0: WIDE}}
    inputs = {"x": ["n", 8], "gate": ["n", 1]}
    return model(rows, weights, inputs, ["y"]), slices


def branched_net():
    """Convolutions of two sizes side by side, joined again."""
    rows = [
        ("Conv", ["x", "w1", "b1"], "c", {"pads": [1] * 4}),
        ("Relu", ["c"], "r", {}),
        ("Conv", ["r", "w2"], "d", {}),
        ("Conv", ["r", "w3", "b3"], "e", {"pads": [1] * 4}),
        ("Relu", ["e"], "f", {}),
        ("Conv", ["f", "w4"], "g", {"pads": [1] * 4}),
        ("Concat", ["d", "g"], "h", {"axis": 1}),
        ("Relu", ["h"], "i", {}),
        ("Conv", ["i", "w5"], "j", {"strides": [2, 2]}),
        ("GlobalAveragePool", ["j"], "p", {}),
        ("Flatten", ["p"], "q", {}),
        ("Gemm", ["q", "w6", "b6"], "y", {"transB": 1}),
    ]
    weights = {
        "w1": correlated(12, 3, 3, 3, seed=1), "b1": normal(12, seed=2),
        "w2": normal(6, 12, 1, 1, seed=3), "w3": correlated(12, 12, 3, 3, seed=4),
        "b3": normal(12, seed=5), "w4": normal(6, 12, 3, 3, seed=6, scale=0.3),
        "w5": normal(12, 12, 3, 3, seed=7), "w6": normal(5, 12, seed=8), "b6": normal(5, seed=9),
    }  # fmt: skip
    slices = {"w1": {0: HALF}, "b1": {0: HALF}, "w2": {1: HALF}}
    slices |= {"w3": {0: HALF, 1: HALF}, "b3": {0: HALF}, "w4": {1: HALF}}
    return model(rows, weights, {"x": ["n", 3, 8, 8]}, ["y"]), slices


def sequence_net():
    """What lies between two levels is a sequence, which cannot be handed from run to run."""
    rows = [
        ("MatMul", ["x", "w1"], "a", {}),
        ("SequenceConstruct", ["a", "a"], "s", {}),
        ("SequenceAt", ["s", "first"], "b", {}),
        ("MatMul", ["b", "w2"], "c", {}),
        ("Relu", ["c"], "d", {}),
        ("MatMul", ["d", "w3"], "e", {}),
        ("SequenceAt", ["s", "second"], "f", {}),
        ("Add", ["e", "f"], "g", {}),
        ("MatMul", ["g", "w4"], "y", {}),
    ]
    weights = {
        "w1": correlated(12, 8, seed=1).T.copy(), "w2": normal(12, 10, seed=4),
        "w3": normal(10, 12, seed=5), "w4": normal(12, 4, seed=6),
        "first": np.int64(0), "second": np.int64(1),
    }  # fmt: skip
    weights |= {n: np.asarray(weights[n]).reshape(()) for n in ("first", "second")}
    slices = {"w1": {1: HALF}, "w2": {0: HALF}, "w3": {1: HALF}, "w4": {0: HALF}}
    built = model(rows, weights, {"x": ["n", 8]}, ["y"])
    sequence = built.graph[1].outputs[0]  # the shape inference of onnx_ir takes it for a tensor
    sequence.type, sequence.shape = ir.SequenceType(ir.TensorType(ir.DataType.FLOAT)), None
    return built, slices


NETS = {"residual": residual_net, "branched": branched_net, "sequence": sequence_net}
ROWS = (20, 12, 16)


class FromTheStart:
    """Both whole graphs, for every level."""

    def __init__(self, original, changing, levels, data, make_runner):
        self._found = (
            collect(side_by_side(original, changing), level, data, make_runner) for level in levels
        )

    def advance(self):
        return next(self._found)


def refitted(net):
    """Weights after a refit, and how many runs compute each tensor of the two models."""
    original, slices = net()
    pruned = prune(original, slices)
    shapes = {v.name: v.shape[1:] for v in original.graph.inputs}
    data = [
        {name: normal(n, *sizes, seed=50 + i) for name, sizes in shapes.items()}
        for i, n in enumerate(ROWS)
    ]
    runs = Counter()

    def counting(instrumented):
        runs.update(n.outputs[0].name for n in instrumented.graph)
        return statistics_session(instrumented)

    assert reconstruct(original, pruned, slices, data, counting) == []
    weights = {n: v.const_value.numpy() for n, v in pruned.graph.initializers.items()}
    ours = {n.outputs[0].name for n in original.graph}
    ours |= {other_name(n.outputs[0]) for n in pruned.graph}
    return weights, {name: runs[name] for name in ours}


@pytest.fixture(scope="module")
def expected():
    """What runs from the start give."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "PairedRun", FromTheStart)
        return {name: refitted(net) for name, net in NETS.items()}


def check(found, wanted):
    assert found.keys() == wanted.keys()
    for name, array in found.items():
        # Sums of products in float32, through a few least-squares problems.
        scale = np.abs(wanted[name]).max()
        np.testing.assert_allclose(array, wanted[name], rtol=0, atol=1e-4 * scale, err_msg=name)


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("held_bytes", [1 << 20, 0], ids=["in memory", "in files"])
def test_each_tensor_is_computed_once(net, held_bytes, expected, monkeypatch):
    monkeypatch.setattr(paired_run, "HELD_BYTES", held_bytes)
    wanted, from_the_start = expected[net]
    weights, runs = refitted(NETS[net])
    check(weights, wanted)
    assert max(from_the_start.values()) > 2
    again = {name for name, count in runs.items() if count > 1}
    assert again == ({"s", f"{PREFIX}s"} if net == "sequence" else set())


@pytest.mark.parametrize("net", NETS)
def test_without_room_every_level_starts_at_the_beginning(net, expected):
    before = limits()
    set_limits(Limits(traces=0))
    try:
        weights, runs = refitted(NETS[net])
    finally:
        set_limits(before)
    wanted, from_the_start = expected[net]
    check(weights, wanted)
    assert runs == from_the_start
