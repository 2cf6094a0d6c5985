"""Weights that are only stored in few bits: what the file holds, and what the runtime gets."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from lwqc.graph.sites import sites_by_name
from lwqc.model import io
from lwqc.model.unused import RemoveUnused
from lwqc.passes.encoded_weights import EncodedWeights
from lwqc.passes.fold_weights import FoldWeights
from lwqc.passes.restore_floats import RestoreFloats
from lwqc.plans.plan import SiteEntry
from lwqc.quant.formats import WeightFormat
from lwqc.runtime.session import Session
from tests.build import model, normal

RNN = {"hidden_size": 24}
NETS = {
    "conv": model(
        [("Conv", ["x", "w"], "y", {})], {"w": normal(32, 4, 3, 3)}, {"x": [1, 4, 8, 8]}, ["y"]
    ),
    "product": model([("MatMul", ["x", "w"], "y", {})], {"w": normal(32, 48)}, {"x": [2, 32]},
                     ["y"]),
    "rows": model([("Gemm", ["x", "w"], "y", {"transB": 1})], {"w": normal(48, 32)},
                  {"x": [2, 32]}, ["y"]),
    "both": model(
        [("MatMul", ["x", "w"], "a", {}), ("Gemm", ["a", "w"], "y", {"transB": 1})],
        {"w": normal(32, 48)}, {"x": [2, 32]}, ["y"],
    ),
    "recurrent": model(
        [("RNN", ["x", "v", "w"], "y", RNN)], {"v": normal(1, 24, 24), "w": normal(1, 24, 24)},
        {"x": [3, 2, 24]}, ["y"],
    ),
    "one channel": model([("MatMul", ["x", "w"], "y", {})], {"w": normal(32, 1)}, {"x": [2, 32]},
                         ["y"]),
}  # fmt: skip


def folded(name: str, fmt: WeightFormat):
    """A copy with the weight `w` stored in a format, and the weight [N, K] that this stands for."""
    copy = NETS[name].clone()
    weights = EncodedWeights(copy, io.read_array)
    entry = SiteEntry(weight=fmt, unpacked=fmt.block is not None)
    decoded = weights.get("w", entry).decode()
    FoldWeights({"w": entry}, weights)(copy)
    RemoveUnused()(copy)
    return copy, decoded


def feeds(name: str) -> dict[str, np.ndarray]:
    shape = [d for d in NETS[name].graph.inputs[0].shape or () if isinstance(d, int)]
    return {"x": normal(*shape, seed=9)}


def expected(name: str, decoded: np.ndarray) -> dict[str, np.ndarray]:
    """What the model gives with the decoded weight in place of its own."""
    copy = NETS[name].clone()
    site = sites_by_name(copy)["w"]
    value = copy.graph.initializers["w"]
    turned = site.uses[0].transposed and decoded.ndim == 2
    shape = [d for d in value.shape or () if isinstance(d, int)]
    array = (decoded.T if turned else decoded).reshape(shape)
    value.const_value = ir.tensor(np.ascontiguousarray(array), name="w")
    return Session(copy)(feeds(name))


EXACT = ["w8c", "fp16", "w8b16h", "w4b16h"]
STORED = ["w3b16hd", "w3b16ahd", "vq1x1", "vq3x4", "vq5x2", "vq7x2", "vq8x4", "vq8x1"]


@pytest.mark.parametrize("fmt", [*EXACT, *STORED])
@pytest.mark.parametrize("name", NETS)
def test_the_runtime_gets_the_decoded_weight(name, fmt):
    made, decoded = folded(name, WeightFormat.parse(fmt))
    for output, value in expected(name, decoded).items():
        assert np.allclose(Session(made)(feeds(name))[output], value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize(("fmt", "steps"), [("w8c", {"Cast": 1, "Mul": 1}), ("fp16", {"Cast": 1})])
def test_plain_codes_take_a_node_or_two(name, fmt, steps):
    made, _ = folded(name, WeightFormat.parse(fmt))
    added = Counter(n.op_type for n in made.graph)
    added.subtract(n.op_type for n in NETS[name].graph)
    assert +added == Counter(steps)


def test_small_constants_of_several_weights_are_stored_once():
    copy = NETS["recurrent"].clone()
    weights = EncodedWeights(copy, io.read_array)
    entry = SiteEntry(weight=WeightFormat(4, 16, True, "float16"), unpacked=True)
    FoldWeights({"v": entry, "w": entry}, weights)(copy)
    numbers = [t.const_value for t in copy.graph.initializers.values() if t.const_value is not None]
    small = [(t.dtype, tuple(t.shape), t.tobytes()) for t in numbers if t.size < 8]
    assert len(small) == len(set(small))


@pytest.mark.parametrize("name", ["conv", "product", "rows", "recurrent"])
def test_plain_codes_are_found_again(name):
    made, decoded = folded(name, WeightFormat(8))
    again = ir.serde.deserialize_model(onnx.ModelProto.FromString(io.to_bytes(made)))
    restore = RestoreFloats()
    restore(again)
    assert {n.op_type for n in again.graph} == {n.op_type for n in NETS[name].graph}
    (stored,) = restore.weights.values()
    assert stored.bits == 8
    found = Session(again)(feeds(name))
    for output, value in expected(name, decoded).items():
        assert np.allclose(found[output], value, rtol=1e-6, atol=1e-6)


def test_other_products_of_casts_are_left_alone():
    """Scales of another rank, and codes that are fed."""
    rows = [
        ("Cast", ["c"], "f", {"to": 1}),
        ("Mul", ["f", "s"], "w", {}),
        ("MatMul", ["x", "w"], "y", {}),
    ]
    codes = np.ones((4, 6), np.int8)
    flat = model(rows, {"c": codes, "s": normal(6)}, {"x": [2, 4]}, ["y"])
    fed = model(rows, {"s": normal(4, 1)}, {"x": [2, 4], "c": [4, 6]}, ["y"], types={"c": 3})
    for built in (flat, fed):
        before = [n.op_type for n in built.graph]
        RestoreFloats()(built)
        assert [n.op_type for n in built.graph] == before
