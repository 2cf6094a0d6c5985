"""Caches of keys and values in int8: an Attention, a GroupQueryAttention, and a plain Concat."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from lwqc.graph.caches import find_caches
from lwqc.passes.code_caches import CodeCaches, channel_scales
from lwqc.runtime.session import Session

HEADS, QUERY_HEADS, SIZE, BATCH, NEW, PAST = 2, 4, 8, 2, 3, 5

HEAD = """
<ir_version: 11, opset_import: ["" : 23, "com.microsoft" : 1]>
decoder (float[batch, new, {q}] q, float[batch, new, {kv}] k, float[batch, new, {kv}] v,
         float[batch, {h}, past, {d}] past_k, float[batch, {h}, past, {d}] past_v)
  => (float[batch, new, {q}] y, float[batch, {h}, total, {d}] present_k,
      float[batch, {h}, total, {d}] present_v)
"""
SIZES = {"q": QUERY_HEADS * SIZE, "kv": HEADS * SIZE, "h": HEADS, "d": SIZE}
FLAT = """{
  a, present_k, present_v = Attention <q_num_heads: int = 4, kv_num_heads: int = 2, scale = 0.7>
    (q, k, v, , past_k, past_v)
  y = Identity (a)
}"""
# The same with heads apart, and attention written out for queries that are as many as keys.
APART = """{
  qs = Constant <value_ints: ints = [0, 0, 4, 8]> ()
  ks = Constant <value_ints: ints = [0, 0, 2, 8]> ()
  ys = Constant <value_ints: ints = [0, 0, 32]> ()
  q4 = Reshape (q, qs)
  qt = Transpose <perm = [0, 2, 1, 3]> (q4)
  k4 = Reshape (k, ks)
  kt = Transpose <perm = [0, 2, 1, 3]> (k4)
  v4 = Reshape (v, ks)
  vt = Transpose <perm = [0, 2, 1, 3]> (v4)
  a, present_k, present_v = Attention <scale = 0.7> (qt, kt, vt, , past_k, past_v)
  at = Transpose <perm = [0, 2, 1, 3]> (a)
  y = Reshape (at, ys)
}"""
JOINED = """{
  qs = Constant <value_ints: ints = [0, 0, 2, 16]> ()
  ks = Constant <value_ints: ints = [0, 0, 2, 8]> ()
  ys = Constant <value_ints: ints = [0, 0, 32]> ()
  k4 = Reshape (k, ks)
  kt = Transpose <perm = [0, 2, 1, 3]> (k4)
  v4 = Reshape (v, ks)
  vt = Transpose <perm = [0, 2, 1, 3]> (v4)
  present_k = Concat <axis = 2> (past_k, kt)
  present_v = Concat <axis = -2> (past_v, vt)
  pk = ReduceMean <keepdims = 1> (present_k, two)
  pv = ReduceMean <keepdims = 1> (present_v, two)
  both = Concat <axis = 3> (pk, pv)
  q4 = Reshape (q, qs)
  qt = Transpose <perm = [0, 2, 1, 3]> (q4)
  a = Mul (qt, both)
  at = Transpose <perm = [0, 2, 1, 3]> (a)
  y = Reshape (at, ys)
  two = Constant <value_ints: ints = [2]> ()
}"""
GROUPED = """{
  a, present_k, present_v = com.microsoft.GroupQueryAttention
    <num_heads: int = 4, kv_num_heads: int = 2, scale = 0.7, causal: int = 0>
    (q, k, v, past_k, past_v, last, total)
  y = Identity (a)
}"""


def decoder(body: str) -> ir.Model:
    model = ir.from_onnx_text(HEAD.format(**SIZES) + body)
    model.graph.sort()
    if "last" in body:
        for name, values in (
            ("last", np.full(1, NEW + PAST - 1, np.int32)),
            ("total", np.asarray(NEW + PAST, np.int32)),
        ):
            inputs = [v for n in model.graph for v in n.inputs if v is not None and v.name == name]
            inputs[0].const_value = ir.tensor(values, name=name)
            model.graph.register_initializer(inputs[0])
    if "qt" in body:
        queries = next(v for n in model.graph for v in n.outputs if v.name == "qt")
        queries.shape = ir.Shape(["batch", QUERY_HEADS, "new", SIZE])
        queries.type = ir.TensorType(ir.DataType.FLOAT)
    return model


def feeds(batch: int = BATCH) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    past = (batch, HEADS, PAST, SIZE)
    spread = rng.uniform(0.2, 2, (1, HEADS, 1, SIZE))
    new = {n: rng.standard_normal((batch, NEW, SIZES["kv"])) for n in ("k", "v")}
    old = {n: rng.standard_normal(past) * spread for n in ("past_k", "past_v")}
    values = {"q": rng.standard_normal((batch, NEW, SIZES["q"])), **new, **old}
    return {name: array.astype(np.float32) for name, array in values.items()}


def coded(model: ir.Model, given: dict[str, np.ndarray]) -> tuple[ir.Model, dict[str, np.ndarray]]:
    """The model with codes, and its scales from what it gives."""
    seen = Session(model)(given)
    scales = {
        f"past_{c}": channel_scales(np.abs(seen[f"present_{c}"]).max((0, 2), keepdims=True))
        for c in "kv"
    }
    copy = model.clone()
    result = CodeCaches(scales)(copy)
    assert result.modified
    return copy, scales


def moved_by(after, before) -> float:
    """Root mean square of the error over that of what is expected."""
    return float(np.linalg.norm(after["y"] - before["y"]) / np.linalg.norm(before["y"]))


BODIES = {"flat": FLAT, "apart": APART, "joined": JOINED, "grouped": GROUPED}


@pytest.mark.parametrize("name", BODIES)
def test_codes_stand_for_the_floats_within_half_a_step(name):
    model, given = decoder(BODIES[name]), feeds(1 if name == "grouped" else BATCH)
    small, scales = coded(model, given)
    before, after = Session(model)(given), Session(small)(given)
    for c in "kv":
        step = scales[f"past_{c}"]
        moved = np.abs(after[f"present_{c}"] - before[f"present_{c}"])
        assert (moved <= 0.5001 * step).all()
        assert moved.max() > 0.1 * step.min(), "the codes were not used"
    assert 1e-4 < moved_by(after, before) < 0.02


@pytest.mark.parametrize("name", BODIES)
def test_what_is_stored_is_int8_and_the_past_stays_as_it_is(name):
    model, given = decoder(BODIES[name]), feeds(1 if name == "grouped" else BATCH)
    small, scales = coded(model, given)
    session = Session(small)
    rng = np.random.default_rng(2)
    past = {n: rng.integers(-127, 128, given[n].shape).astype(np.int8) for n in scales}
    outputs = session({**given, **past})
    for c in "kv":
        present = outputs[f"present_{c}"]
        assert present.dtype == np.int8
        assert np.array_equal(present[:, :, :PAST], past[f"past_{c}"])
        assert session.types[f"present_{c}"] == "tensor(int8)"
    floats = {n: (past[n] * scales[n]).astype(np.float32) for n in past}
    assert np.allclose(outputs["y"], session({**given, **floats})["y"], atol=1e-6)


@pytest.mark.parametrize("name", ["flat", "apart"])
def test_attention_computes_exactly_with_what_the_codes_stand_for(name):
    """Only the rounding of keys and values differs from the float model, nothing else."""
    model, given = decoder(BODIES[name]), feeds()
    small, scales = coded(model, given)

    def rounded(array: np.ndarray, scale: np.ndarray) -> np.ndarray:
        return (np.clip(np.rint(array / scale), -128, 127) * scale).astype(np.float32)

    grid = {n: rounded(given[n], scales[n]) for n in scales}
    flat = {c: scales[f"past_{c}"].reshape(-1) for c in "kv"}
    new = {c: rounded(given[c], flat[c]) for c in "kv"}
    expected = Session(model)({**given, **grid, **new})["y"]
    assert np.allclose(Session(small)(given)["y"], expected, atol=2e-5)


def test_what_is_beyond_the_range_saturates():
    model, given = decoder(FLAT), feeds()
    small, scales = coded(model, given)
    wild = {**given, "past_k": 10 * given["past_k"], "k": 1000 * given["k"]}
    present = Session(small)(wild)["present_k"]
    limit = 128 * scales["past_k"]
    assert (np.abs(present) <= limit * 1.001).all()
    assert np.abs(present).max() > 0.9 * limit.max()


def test_a_channel_in_which_nothing_was_seen_gets_the_scale_of_the_largest():
    most = np.array([[[[0.0, 2.032]], [[1.016, 0.0]]]], np.float32)
    assert np.allclose(channel_scales(most)[0, :, 0], [[0.02, 0.02], [0.01, 0.02]])
    assert np.allclose(channel_scales(np.zeros((1, 1, 1, 2), np.float32)), 1.25 / 127)


NEAR = {
    "float16": (FLAT.replace("float", "float"), "past_k", "not float32"),
    "read elsewhere": (
        FLAT.replace("y = Identity (a)", "e = ReduceMax <keepdims = 0> (past_k)\n  y = Add (a, e)"),
        "past_k", "something else reads it too",
    ),
    "read behind": (
        FLAT.replace(
            "y = Identity (a)", "e = ReduceMax <keepdims = 0> (present_v)\n  y = Add (a, e)"
        ),
        "past_v", "something reads what comes of it",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NEAR)
def test_caches_that_others_need_stay_float(name):
    body, cache, reason = NEAR[name]
    model = decoder(body)
    if name == "float16":
        value = next(v for v in model.graph.inputs if v.name == cache)
        value.type = ir.TensorType(ir.DataType.FLOAT16)
    found, left = find_caches(model.graph)
    assert not found
    assert [(r.name, reason in r.reason) for r in left] == [(cache, True)]


def test_looking_at_the_length_of_the_past_does_not_matter():
    body = FLAT.replace(
        "y = Identity (a)",
        "n = Shape <start = 2, end = 3> (past_k)\n  f = Cast <to = 1> (n)\n  y = Add (a, f)",
    )
    model, given = decoder(body), feeds()
    small, _ = coded(model, given)
    before, after = Session(model)(given), Session(small)(given)
    assert moved_by(after, before) < 0.02


def test_heads_that_are_not_fixed_are_no_caches():
    model = decoder(FLAT)
    for value in model.graph.inputs:
        if value.name == "past_v":
            value.shape = ir.Shape(["batch", "heads", "past", SIZE])
    found, left = find_caches(model.graph)
    assert not found
    assert "how many heads" in left[0].reason
