"""Removing residual branches: every architecture, caches, parallel and nested branches, traps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from lwqc.errors import InputError
from lwqc.graph.branch_kinds import KINDS, branch_tree
from lwqc.graph.branches import residual_branches
from lwqc.model import io
from lwqc.passes.gate_branches import GateBranches
from lwqc.passes.remove_branches import RemoveBranches
from lwqc.runtime.session import Session, SessionSettings
from models import glyphs, stdlib_lm
from tests.build import model, normal
from tests.graph.test_branch_kinds import TABLE, path_of
from tests.zoo.materialize import materialize, sample_inputs

SMALL = {"bert.dynamo", "glyph_resnet"}  # every single branch of these is removed
LARGE_BYTES = 12_000_000  # of these one branch, and those of one kind
WITH = [name for name, (kinds, _, _) in TABLE.items() if sum(kinds) and name != "stdlib_lm_past"]


def removed(built: ir.Model, names, **options):
    copy = built.clone()
    rewrite = RemoveBranches(names, **options)
    rewrite(copy)
    return copy, rewrite.done


def plain(built: ir.Model) -> Session:
    """Without fusions, which round differently with and without gates."""
    return Session(built, SessionSettings(optimize=False))


def opened(name: str):
    path: Path = path_of(name)
    if "." in name:
        return ir.from_proto(materialize(path)), sample_inputs(path, batch=1)
    if name.startswith("glyph"):
        return io.load(path), {k: v[:2] for k, v in next(iter(glyphs.calibration())).items()}
    return io.load(path), {"input_ids": next(stdlib_lm.calibration())["input_ids"][:1, :32]}


def choices(name: str, built: ir.Model):
    """Single branches, then all of each kind, then all."""
    tree = branch_tree(built.graph)
    names = [b.name for b in tree.branches]
    kinds = [
        [b.name for b in tree.branches if b.kind == kind] for kind in KINDS if tree.count(kind)
    ]
    if name in SMALL:
        return [*([n] for n in names), *kinds, names]
    if io.weight_bytes(built) > LARGE_BYTES:
        return [[names[len(names) // 2]], kinds[0]]
    return [*([n] for n in (names[0], names[len(names) // 2], names[-1])), *kinds]


@pytest.mark.parametrize("name", WITH)
def test_removed_equals_gated(name: str) -> None:
    built, feeds = opened(name)
    gated, gates = built.clone(), GateBranches(b.name for b in residual_branches(built.graph))
    gates(gated)
    run = plain(gated)
    for names in choices(name, built):
        small, done = removed(built, names)
        assert not done.left
        onnx.checker.check_model(io.to_bytes(small), full_check=True)
        assert {b.name for b in residual_branches(small.graph)}.isdisjoint(names)
        read = {v for node in small.graph.all_nodes() for v in node.inputs}
        assert all(v in read or v.is_graph_output() for v in small.graph.initializers.values())
        found, expected = plain(small)(feeds), run({**feeds, **gates.feeds(names)})
        assert set(expected) - set(found) == set(done.dropped_outputs)
        for key, value in found.items():
            scale = max(float(np.abs(expected[key]).max()), 1.0)
            np.testing.assert_allclose(value, expected[key], rtol=0, atol=1e-5 * scale)
    if io.weight_bytes(built) <= LARGE_BYTES:
        for key, value in plain(built)(feeds).items():
            np.testing.assert_array_equal(run({**feeds, **gates.feeds()})[key], value)


def attention(built: ir.Model) -> list[str]:
    return [b.name for b in branch_tree(built.graph).branches if b.kind == "attention"]


def generated(built: ir.Model, ids) -> np.ndarray:
    """Logits of a text that is fed token by token."""
    step = Session(built)
    past = {k: v for k, v in stdlib_lm.empty_past(len(ids)).items() if k in step.inputs}
    logits = []
    for position in range(ids.shape[1]):
        outputs = step({"input_ids": ids[:, position, None], **past})
        logits.append(outputs["logits"])
        past = {k.replace("present", "past"): v for k, v in outputs.items() if k != "logits"}
    return np.concatenate(logits, 1)


# The length so far is read off past_k1, see the test after next.
@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("layers", [[1, 5], list(range(12))], ids=["two", "all"])
def test_decoder_with_cache_equals_its_twin_without(layers, keep) -> None:
    cached, whole = io.load(stdlib_lm.MODEL_PAST), io.load(stdlib_lm.MODEL)
    ids = next(stdlib_lm.calibration())["input_ids"][:2, :12]
    small, done = removed(cached, [attention(cached)[i] for i in layers], keep_signature=keep)
    twin, _ = removed(whole, [attention(whole)[i] for i in layers])
    found, expected = generated(small, ids), Session(twin)({"input_ids": ids})["logits"]
    np.testing.assert_allclose(found, expected, atol=1e-3)  # sums in another order, logits of 20
    past = {f"past_{kind}{i}" for i in layers for kind in "kv"}
    present = {name.replace("past", "present") for name in past}
    before = {v.name for v in cached.graph.inputs}
    after = {v.name for v in small.graph.inputs}
    if keep:
        assert after == before
        assert [v.name for v in small.graph.outputs] == [v.name for v in cached.graph.outputs]
        assert done.passed_through == {name.replace("past", "present"): name for name in past}
        assert not done.dropped_inputs
    else:
        assert before - after == past == set(done.dropped_inputs)
        assert set(done.dropped_outputs) == present
        assert not done.passed_through


def llama(name: str, chosen: slice):
    built, feeds = opened(name)
    return built, feeds, attention(built)[chosen]


@pytest.mark.parametrize("name", ["llama_past.dynamo", "llama_past.legacy"])
def test_another_cache_gives_the_length(name: str) -> None:
    built, feeds, names = llama(name, slice(1))
    small, done = removed(built, names)
    assert done.dropped_inputs == ["past_k0", "past_v0"]
    assert not done.still_computed
    kept, _ = removed(built, names, keep_signature=True)
    found, same = Session(small)(feeds), Session(kept)(feeds)
    np.testing.assert_array_equal(same["present_k0"], feeds["past_k0"])
    np.testing.assert_allclose(found["logits"], same["logits"], atol=1e-5)


LENGTH = """
<ir_version: 9, opset_import: ["" : 20]>
net (float[b, s, 4] x, float[b, p, 4] past) => (float[b, s, 4] y, float[b, t, 4] present)
<float[4, 4] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3, 4, 5, 6, 7}>
{
  k = MatMul(x, w)
  present = Concat<axis = 1>(past, k)
  kt = Transpose<perm = [0, 2, 1]>(present)
  scores = MatMul(x, kt)
  p = Softmax(scores)
  f = MatMul(p, present)
  z = Add(x, f)
  shape = Shape<start = 1, end = 2>(past)
  length = Cast<to = 1>(shape)
  y = Add(z, length)
}
"""


@pytest.mark.parametrize("keep", [False, True])
def test_the_only_cache_stays_when_its_length_is_read(keep) -> None:
    built = ir.from_onnx_text(LENGTH)
    small, done = removed(built, ["z"], keep_signature=keep)
    assert done.still_computed == {"present": "the length so far is read from past"}
    assert not done.dropped_inputs
    assert not done.passed_through
    assert done.left == ["MatMul"]
    feeds = {"x": normal(2, 3, 4), "past": normal(2, 5, 4)}
    found, before = Session(small)(feeds), Session(built)(feeds)
    np.testing.assert_array_equal(found["y"], feeds["x"] + 5)
    np.testing.assert_array_equal(found["present"], before["present"])


def test_an_output_that_continues_no_input() -> None:
    text = LENGTH.replace("Concat<axis = 1>(past, k)", "Identity(k)").replace("(past)", "(x)")
    built = ir.from_onnx_text(text)
    assert removed(built, ["z"])[1].dropped_outputs == ["present"]
    _, done = removed(built, ["z"], keep_signature=True)
    assert "continues no input" in done.still_computed["present"]


def stack(join: str, signature: str = "(float[n, 4] x) => (float[n, 4] y)") -> ir.Model:
    """Branches f and, where it is joined too, g on one norm."""
    second = "h = MatMul(n, v) g = Relu(h)" if ", g)" in join else ""
    text = f"""
    <ir_version: 9, opset_import: ["" : 20]>
    net {signature}
    <float[4, 4] w = {{1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3, 4, 5, 6, 7}},
     float[4, 4] v = {{2, 1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1}}>
    {{ n = Relu(x) f = MatMul(n, w) {second} {join} }}
    """
    return ir.from_onnx_text(text)


JOINS = ["s = Add(f, g) y = Add(x, s)", "s = Add(x, f) y = Add(s, g)", "y = Sum(x, f, g)"]


@pytest.mark.parametrize("join", JOINS)
@pytest.mark.parametrize("chosen", [[0], [1], [0, 1]])
def test_parallel_branches(join, chosen) -> None:
    built = stack(join)
    names = [residual_branches(built.graph)[i].name for i in chosen]
    small, _ = removed(built, names)
    x = normal(3, 4)
    n, w, v = (np.maximum(x, 0), *(built.graph.initializers[k].const_value.numpy() for k in "wv"))
    parts = [n @ w, np.maximum(n @ v, 0)]
    expected = x + sum((parts[i] for i in (0, 1) if i not in chosen), np.zeros_like(x))
    np.testing.assert_allclose(Session(small)({"x": x})["y"], expected, rtol=1e-5, atol=1e-5)
    assert len(small.graph.initializers) == 2 - len(chosen)


def test_a_branch_inside_another() -> None:
    built = stack("q = MatMul(f, v) m = Add(f, q) y = Add(x, m)")
    inner, outer = (b.name for b in residual_branches(built.graph))
    assert (inner, outer) == ("m", "y")
    x = normal(3, 4)
    n, w = np.maximum(x, 0), built.graph.initializers["w"].const_value.numpy()
    run = lambda names: Session(removed(built, names)[0])({"x": x})["y"]  # noqa: E731
    np.testing.assert_allclose(run(["m"]), x + n @ w, rtol=1e-5)
    for names in (["y"], ["m", "y"], ["y", "m"]):
        np.testing.assert_array_equal(run(names), x)


def test_traps() -> None:
    # The sum is itself an output, and both the stream and the sum are read in an If.
    signature = "(float[n, 4] x, bool flag) => (float[n, 4] y, float[n, 4] out)"
    body = """y = Add(x, f)
      out = If (flag) <
        then_branch = a () => (float[n, 4] p) { p = Add(y, y) },
        else_branch = b () => (float[n, 4] q) { q = Relu(x) }
      >"""
    built = stack(body, signature)
    small, done = removed(built, ["y"])
    onnx.checker.check_model(io.to_bytes(small), full_check=True)
    x = normal(3, 4)
    found = Session(small)({"x": x, "flag": np.array(True)})
    np.testing.assert_array_equal(found["y"], x)
    np.testing.assert_array_equal(found["out"], x + x)
    assert not done.dropped_outputs
    assert not small.graph.initializers


def test_a_tensor_that_others_read_stays() -> None:
    rows = [
        ("MatMul", ["x", "w"], "f", {}),
        ("Add", ["x", "f"], "z", {}),
        ("MatMul", ["z", "w"], "y", {}),
    ]
    small, _ = removed(model(rows, {"w": normal(4, 4)}, {"x": ["n", 4]}, ["y"]), ["z"])
    assert list(small.graph.initializers) == ["w"]
    assert [n.op_type for n in small.graph] == ["MatMul"]


def test_the_signature_keeps_masks_and_the_model_its_input() -> None:
    built, _, names = llama("llama.dynamo", slice(None))
    small, done = removed(built, names)
    assert [v.name for v in small.graph.inputs] == [v.name for v in built.graph.inputs]
    assert not done.dropped_inputs


def test_refusals() -> None:
    built = stack("y = Add(f, g)")
    with pytest.raises(InputError, match="nothing: is no branch; see lwqc inspect"):
        removed(built, ["nothing"])
    resnet = io.load(path_of("glyph_resnet"))
    with pytest.raises(InputError, match="add_137: cannot be removed: a projection shortcut"):
        removed(resnet, ["add_137"])
    with pytest.raises(InputError, match="nothing: is no branch"):
        GateBranches(["nothing"])(built.clone())
    only = ir.from_onnx_text(
        LENGTH.replace("(float[b, s, 4] y, float[b, t, 4] present)", "(float[b, t, 4] present)")
    )
    with pytest.raises(InputError, match="every output of the model"):
        removed(only, ["z"])


def test_nothing_to_remove_changes_nothing() -> None:
    built = stack("y = Add(x, f)")
    before = ir.to_proto(built).SerializeToString()
    assert not RemoveBranches([])(built).modified
    assert ir.to_proto(built).SerializeToString() == before
