"""Static 8-bit grids behind switches."""

from __future__ import annotations

import numpy as np

from lwqc.passes.gate_tensors import GateTensors
from lwqc.quant.activation import activation_grid
from lwqc.runtime.session import Session
from tests.build import model, normal


def net():
    return model(
        [("Relu", ["x"], "r", {}), ("Neg", ["r"], "a", {}), ("Add", ["r", "a2"], "b", {})],
        {"a2": normal(4)},
        {"x": ["batch", 4]},
        ["a", "b"],
    )


def test_all_readers_see_the_grid_where_its_gate_is_open() -> None:
    feeds = {"x": normal(5, 4, seed=2)}
    built = net()
    gates = GateTensors({"r": activation_grid(0, 1), "missing": activation_grid(0, 1)})
    gates(built)
    assert list(gates.gates) == ["r"]
    run, plain = Session(built), Session(net())(feeds)
    closed = run({**feeds, **gates.feeds()})
    for name, value in plain.items():
        np.testing.assert_array_equal(closed[name], value)
    opened = run({**feeds, **gates.feeds(["r"])})
    expected = np.clip(np.rint(np.maximum(feeds["x"], 0) * 255), 0, 255) / np.float32(255)
    np.testing.assert_allclose(opened["a"], -expected, atol=1e-6)
    np.testing.assert_allclose(opened["b"], expected + normal(4), atol=1e-6)
    assert np.abs(opened["a"] - plain["a"]).max() > 0.1  # beyond the grid, too
