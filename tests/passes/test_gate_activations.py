"""8-bit activations behind switches."""

from __future__ import annotations

import numpy as np

from lwqc.passes.gate_activations import GateActivations
from lwqc.runtime.session import Session
from tests.build import model, normal


def net():
    return model(
        [
            ("MatMul", ["x", "w1"], "h", {}),
            ("Relu", ["h"], "r", {}),
            ("MatMul", ["r", "w2"], "y", {}),
        ],
        {"w1": normal(8, 16), "w2": normal(16, 4, seed=1)},
        {"x": ["batch", 8]},
        ["y"],
    )


def rounded(x):
    """As DynamicQuantizeLinear does: the range holds 0."""
    low, high = min(x.min(), 0), max(x.max(), 0)
    scale = np.float32((high - low) / 255)
    zero = np.clip(np.rint(-low / scale), 0, 255)
    return (np.clip(np.rint(x / scale) + zero, 0, 255) - zero) * scale


def test_open_and_closed() -> None:
    feeds = {"x": normal(5, 8, seed=2)}
    built = net()
    gates = GateActivations(["w2"])
    gates(built)
    run = Session(built)
    plain = Session(net())(feeds)["y"]
    np.testing.assert_array_equal(run({**feeds, **gates.feeds()})["y"], plain)
    hidden = np.maximum(feeds["x"] @ normal(8, 16), 0)
    expected = rounded(hidden) @ normal(16, 4, seed=1)
    found = run({**feeds, **gates.feeds(["w2"])})["y"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert np.abs(found - plain).max() > 1e-4


def test_only_named_sites_get_a_gate() -> None:
    built = net()
    gates = GateActivations(["w1", "missing"])
    gates(built)
    assert list(gates.gates) == ["w1"]
    assert [v.name for v in built.graph.inputs] == ["x", "round/w1"]
    assert [n.op_type for n in built.graph].count("DynamicQuantizeLinear") == 1
