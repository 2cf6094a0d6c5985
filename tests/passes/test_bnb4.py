"""Float4 weights: what the pass writes, and that the runtime computes with it."""

import numpy as np
import pytest

from lwqc.backends.cpu import CpuTarget
from lwqc.errors import InputError
from lwqc.model import io
from lwqc.passes.encoded_weights import EncodedWeights
from lwqc.plans.plan import Plan, SiteEntry, Source
from lwqc.runtime.session import Session
from tests.build import model, normal

TARGET = CpuTarget()


def lower(built, entry):
    weights = EncodedWeights(built, io.read_array)
    plan = Plan(source=Source(), quantize={"w": entry})
    return TARGET.lower(built, plan, weights), weights.get("w", entry).decode()


@pytest.mark.parametrize("text", ["nf4b32", "fp4b64h"])
def test_matmul(text):
    built = model([("MatMul", ["x", "w"], "y", {})], {"w": normal(64, 7)}, {"x": ["m", 64]}, ["y"])
    entry = SiteEntry(weight=text)
    lowered, decoded = lower(built, entry)
    assert lowered.forms == {"w": "MatMulBnb4"}
    assert not TARGET.misplaced(lowered)
    assert io.weight_bytes(lowered.model) == entry.weight.size_bytes(7, 64)
    stored = lowered.model.graph.initializers
    assert {n: list(v.shape) for n, v in stored.items()} == {
        "w_q4": [7 * 64 // 2],
        "w_scale": [7 * 64 // entry.weight.block],
    }
    feeds = {"x": normal(2, 64, seed=1)}
    expected = feeds["x"] @ decoded.T
    np.testing.assert_allclose(Session(lowered.model)(feeds)["y"], expected, atol=1e-4)


@pytest.mark.parametrize("bias", [(48,), (1, 48)])
@pytest.mark.parametrize("trans", [0, 1])
def test_gemm_keeps_its_bias(trans, bias):
    weights = {"w": normal(48, 96) if trans else normal(96, 48), "b": normal(*bias, seed=3)}
    built = model(
        [("Gemm", ["x", "w", "b"], "y", {"transB": trans})], weights, {"x": ["m", 96]}, ["y"]
    )
    lowered, decoded = lower(built, SiteEntry(weight="nf4b32"))
    feeds = {"x": normal(4, 96, seed=2)}
    expected = feeds["x"] @ decoded.T + weights["b"]
    np.testing.assert_allclose(Session(lowered.model)(feeds)["y"], expected, atol=1e-4)


def test_weight_shared_by_two_nodes_is_stored_once():
    rows = [("MatMul", ["x", "w"], "h", {}), ("MatMul", ["h", "w"], "y", {})]
    built = model(rows, {"w": normal(64, 64, scale=0.1)}, {"x": [2, 3, 64]}, ["y"])
    entry = SiteEntry(weight="nf4b64")
    lowered, decoded = lower(built, entry)
    assert io.weight_bytes(lowered.model) == entry.weight.size_bytes(64, 64)
    feeds = {"x": normal(2, 3, 64, seed=1)}
    expected = feeds["x"] @ decoded.T @ decoded.T
    np.testing.assert_allclose(Session(lowered.model)(feeds)["y"], expected, atol=1e-4)


def test_float16_model():
    built = model(
        [("MatMul", ["x", "w"], "y", {})], {"w": normal(64, 8).astype(np.float16)},
        {"x": ["m", 64]}, ["y"], types={"x": 10, "y": 10},
    )  # fmt: skip
    lowered, decoded = lower(built, SiteEntry(weight="nf4b32"))
    feeds = {"x": normal(3, 64, seed=1).astype(np.float16)}
    found = Session(lowered.model)(feeds)["y"]
    assert found.dtype == np.float16
    expected = feeds["x"].astype(np.float32) @ decoded.T
    # Scales and results are rounded to 11 bits.
    np.testing.assert_allclose(
        found.astype(np.float32), expected, atol=2e-3 * np.abs(expected).max()
    )


def test_tied_embeddings_are_refused():
    rows = [
        ("Gather", ["w", "i"], "e", {}),
        ("Transpose", ["w"], "t", {"perm": [1, 0]}),
        ("MatMul", ["e", "t"], "y", {}),
    ]
    built = model(rows, {"w": normal(50, 64)}, {"i": ["b", 3]}, ["y"], types={"i": 7})
    with pytest.raises(InputError, match=r"^w .*no kernel for Gather\+MatMul"):
        lower(built, SiteEntry(weight="nf4b32"))
