"""Weights that 8 bits with a scale per channel do not bear, and files that bear no more."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest

import lwqc
from lwqc.compile.candidates import evaluate
from lwqc.compile.losses import full_drop
from lwqc.decide import planning, safest
from lwqc.decide.compress import open_version
from lwqc.decide.search.joint import search_model
from lwqc.model import io
from tests.build import model, normal
from tests.test_odd_places import COND, X, Y, body, either, made, v, w
from tests.test_odd_places import N as node

SITES = ("w0", "w1", "w2")


def chain(weights, rows=()):
    """Three products with Tanh between them; input 0 and every 32nd after it are nearly zero."""
    steps = [
        ("Mul", ["x", "quiet"], "v0", {}),
        ("MatMul", ["v0", "w0"], "a0", {}),
        ("Tanh", ["a0"], "b0", {}),
        ("Mul", ["b0", "quiet"], "v1", {}),
        ("MatMul", ["v1", "w1"], "a1", {}),
        ("Tanh", ["a1"], "v2", {}),
        ("MatMul", ["v2", "w2"], "y", {}),
    ]
    quiet = np.ones(96, np.float32)
    quiet[::32] = 1e-4
    return model(steps, {**weights, "quiet": quiet}, {"x": ["batch", 96]}, ["y"])


def weights(blocks, factor=300):
    """In so many blocks of `w1`, those of the first input are larger by a factor."""
    found = {name: normal(96, 96, seed=i, scale=0.15) for i, name in enumerate(SITES)}
    found["w1"][: 32 * blocks : 32] *= factor
    return found


def held(blocks, limit=0.002, factor=300):
    work = open_version(chain(weights(blocks, factor)), data=[{"x": normal(16, 96, seed=7)}])
    plan = safest.holding(work, limit, "auto")
    assert plan is not None
    candidate, session = evaluate(work, plan)
    assert full_drop(work, session) <= limit
    return {n: str(e.weight) for n, e in plan.quantize.items()}, plan, candidate


def test_a_scale_per_channel_where_that_is_enough():
    assert held(0)[0] == dict.fromkeys(SITES, "w8c")


def test_scales_per_block_where_they_are_enough():
    formats, plan, _ = held(1, 0.009, factor=60)
    assert formats == dict.fromkeys(SITES, "w8b32h")
    assert not plan.kept_float


def test_16_bits_where_no_scale_is_enough_and_not_for_the_others():
    formats, plan, candidate = held(3)
    assert formats["w1"] == "fp16"
    assert {formats["w0"], formats["w2"]} <= {"w8c", "w8b32h"}
    assert "8 bits lose more than 0.002 here" in plan.kept_float["w1"]  # alone, which was tried
    assert candidate.size_bytes < 0.42 * 3 * 96 * 96 * 4


def test_finer_scales_are_for_stored_weights_with_many_inputs():
    rows = [
        ("Conv", ["x", "deep"], "a", {"group": 64, "pads": [1, 1, 1, 1]}),
        ("Conv", ["a", "wide"], "y", {}),
    ]
    nets = model(rows, {"deep": normal(64, 1, 3, 3), "wide": normal(64, 64, 3, 3)},
                 {"x": [1, 64, 8, 8]}, ["y"])  # fmt: skip
    work = open_version(nets, data=[{"x": normal(1, 64, 8, 8)}])
    plain = planning.folded(work, "")
    found = planning.finer(work, plain).quantize
    assert {n: str(e.weight) for n, e in found.items()} == {"deep": "w8c", "wide": "w8b32h"}
    met = {n: e.model_copy(update={"activation": "static"}) for n, e in plain.quantize.items()}
    assert planning.finer(work, plain.model_copy(update={"quantize": met})).quantize == met


@pytest.mark.parametrize(("count", "kept"), [(20, ["w1"]), (80, [])])
def test_what_is_small_is_told_by_the_share_of_all_weights(count, kept):
    """A weight of 600 numbers counts beside 80,000 others, and not beside 800,000."""
    large = count * 10_000
    rows = [("MatMul", ["x", "w0"], "a", {}), ("MatMul", ["a", "w1"], "y", {})]
    sizes = {"w0": normal(large // 200, 200), "w1": normal(200, 3)}
    work = open_version(model(rows, sizes, {"x": [1, large // 200]}, ["y"]), data="random:1")
    plan = planning.folded(work, "")
    assert ("w1" in plan.quantize) == bool(kept)
    assert ("has only 600 weights" in plan.kept_float.get("w1", "")) != bool(kept)


@pytest.mark.parametrize("stated", [True, False])
def test_types_that_the_file_leaves_to_be_inferred_are_left_so(stated, tmp_path):
    built = chain(weights(0))
    proto = onnx.ModelProto.FromString(io.to_bytes(built))
    if not stated:
        del proto.graph.value_info[:]
    onnx.save(proto, tmp_path / "m.onnx")
    lwqc.quantize(tmp_path / "m.onnx").save(tmp_path / "o.onnx")
    lwqc.quantize(tmp_path / "m.onnx").save(tmp_path / "e.onnx", external_data=True)
    for name in ("o.onnx", "e.onnx"):
        saved = onnx.load(tmp_path / name, load_external_data=False)
        assert bool(saved.graph.value_info) == stated
        assert not saved.metadata_props


def test_a_size_that_cannot_be_had_says_what_the_file_is_made_of(tmp_path, run):
    io.save(chain(weights(0)), tmp_path / "m.onnx")
    code, out, err = run("compress", tmp_path / "m.onnx", "-o", tmp_path / "o.onnx",
                         "--max-size", "0.01", "--json")  # fmt: skip
    assert code == 3
    (missed,) = [o for o in json.loads(out)["outcomes"] if o["name"] == "size"]
    parts = [int(part.split()[0]) for part in missed["why"].split(";")]
    assert sum(parts) == missed["reached"] == (tmp_path / "o.onnx").stat().st_size
    assert f"({missed['why']})" in err
    assert "in weights in vq4x2" in err


def test_weights_that_the_data_does_not_show_take_their_part_of_a_size(tmp_path):
    """Those of a branch that does not run."""
    then = body([node("MatMul", ["x", "p"], ["t"])], [], [v("t", "n", 64)], [w("p", 64, 64)])
    other = body([node("MatMul", ["x", "q"], ["e"])], [], [v("e", "n", 64)], [w("q", 64, 64)])
    onnx.save(made([either(then, other)], [X, COND], [Y]), tmp_path / "m.onnx")
    data = [{"x": normal(4, 64, seed=i), "c": np.array(True)} for i in range(2)]
    work = open_version(tmp_path / "m.onnx", data=data)
    options = {"method": "rtn", "tiny": True, "unpack": False}
    wide = search_model(work, {"format"}, **options).constant
    few = search_model(
        work, {"format"}, **options, size_bytes=0.2 * work.original.size_bytes
    ).constant
    assert {n: e.weight.bits for n, e in wide.items()} == {"q": 8}
    assert few["q"].weight.bits <= 4
    assert few["q"].size_bytes(64, 64) <= 0.1 * work.original.size_bytes
