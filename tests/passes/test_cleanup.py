"""Cleaned models compute the same; attention, masks and norms run in the kernels they should."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import lwqc
from lwqc.compile.activation_facts import activation_ranges
from lwqc.compile.cleaned import cleaned
from lwqc.decide.compress import open_version
from lwqc.model import io
from lwqc.passes.cleanup import Cleaned, clean_up
from lwqc.passes.fold_constants import FoldConstants
from lwqc.passes.integer_bias import IntegerBias
from lwqc.passes.residual_sum import ResidualSum
from lwqc.plans.plan import CleanUp
from lwqc.runtime.session import Session, optimized_graph
from lwqc.runtime.stats.ranges import Range
from tests.build import Row, model, normal
from tests.conftest import ZOO as FILES
from tests.zoo.materialize import materialize, sample_inputs

TOLERANCE = 1e-5  # of the largest output
LAYERS, HEAD = 3, 2  # of the bert skeletons; the head is two linear layers, one with a gelu
# Attentions that are fused, and softmaxes that remain, with what `left` says of them.
SKELETONS = {
    "bert.dynamo": (3, 0, set()),
    "bert.legacy": (3, 0, set()),
    "gpt2.dynamo": (3, 0, set()),
    "llama_past.legacy": (3, 0, set()),
    "mixtral.dynamo": (2, 2, set()),
    "qwen2.dynamo": (3, 0, set()),
    "t5.dynamo": (6, 0, set()),
    "deit_tiny_distilled_patch16_224.dynamo": (6, 0, set()),
    "vit_small_patch16_224.legacy": (6, 0, set()),
    "swin_t.dynamo": (7, 5, {"attention: its scores pass through Reshape"}),
    "shufflenet_v2_x1_0.legacy": (0, 0, set()),
    "mobilenet_v3_large.dynamo": (0, 0, set()),
}


def ops(built: ir.Model | onnx.GraphProto) -> Counter[str]:
    nodes = built.node if isinstance(built, onnx.GraphProto) else built.graph
    return Counter(node.op_type for node in nodes)


def zoo(name: str) -> tuple[ir.Model, dict[str, np.ndarray]]:
    path = next(f for f in FILES if f.stem == name)
    proto = materialize(path)
    inputs = {v.name for v in proto.graph.input}
    feeds = {n: v for n, v in sample_inputs(path, batch=2).items() if n in inputs}
    return ir.serde.deserialize_model(proto), feeds


def check(built: ir.Model, feeds, **options) -> Cleaned:
    before = io.model_digest(built)
    done = clean_up(built, **options)
    assert io.model_digest(built) == before
    onnx.checker.check_model(io.to_bytes(done.model), full_check=True)
    found = Session(done.model)(feeds)
    for name, expected in Session(built)(feeds).items():
        scale = float(np.abs(expected.astype(np.float64)).max()) or 1.0
        np.testing.assert_allclose(found[name], expected, rtol=0, atol=TOLERANCE * scale)
    return done


@pytest.mark.parametrize("name", SKELETONS)
def test_zoo(name):
    built, feeds = zoo(name)
    done = check(built, feeds)
    attentions, softmaxes, reasons = SKELETONS[name]
    assert ops(done.model)["Attention"] == attentions
    assert ops(done.model)["Softmax"] == softmaxes
    assert set(done.left.values()) == reasons
    assert not done.relaxed
    assert len(done.model.graph) <= len(built.graph)
    if attentions:
        assert ops(optimized_graph(done.model))["Attention"] == attentions


def test_without_fusion_the_operators_and_the_opset_stay():
    built, feeds = zoo("bert.dynamo")
    done = check(built, feeds, fuse=False, merge=False)
    assert done.model.opset_imports[""] == built.opset_imports[""]
    assert ops(done.model)["Softmax"] == 3
    assert ops(done.model)["Where"] < ops(built)["Where"]  # one mask for all layers


def test_padding_is_masked_alike_and_hidden_rows_give_zero():
    built, feeds = zoo("bert.dynamo")
    mask = next(n for n, v in feeds.items() if "mask" in n)
    feeds[mask][:] = 1
    feeds[mask][0, 3:] = 0
    feeds[mask][1] = 0
    check(built, feeds)


@pytest.mark.parametrize("name", ["bert.dynamo", "bert.legacy"])
def test_bert_in_the_kernels_it_should_run_in(name):
    built, _ = zoo(name)
    done = clean_up(built)
    ResidualSum()(done.model)
    found = ops(optimized_graph(done.model))
    assert found["Attention"] == LAYERS
    assert found["BiasGelu"] == LAYERS + 1  # also where erf is written out
    assert found["Split"] == LAYERS  # of the merged projections
    assert found["MatMul"] == 4 * LAYERS + HEAD
    assert found["SkipLayerNormalization"] == 0
    assert not {"Softmax", "IsNaN", "Transpose", "Erf", "GatherND", "FusedMatMul"} & set(found)


def test_quantized_bert_in_the_kernels_it_should_run_in():
    built, feeds = zoo("bert.dynamo")
    done = clean_up(built)
    small = lwqc.compress(done.model, recipe="w8a8-dynamic", data=[feeds]).model
    IntegerBias()(small)
    found = ops(optimized_graph(small))
    assert found["DynamicQuantizeMatMul"] == 4 * LAYERS + HEAD
    assert found["Attention"] == LAYERS
    assert found["Gelu"] == LAYERS + 1
    assert found["BiasGelu"] == found["SkipLayerNormalization"] == found["MatMul"] == 0


def guarded(mask: str) -> ir.Model:
    """Attention without an axis of heads, which is not fused, behind a mask."""
    rows: list[Row] = [
        ("MatMul", ["q", "k"], "s", {}),
        ("Where", ["keep", "zero", mask], "a", {}),
        ("Add", ["s", "a"], "m", {}),
        ("Softmax", ["m"], "p", {"axis": -1}),
        ("IsNaN", ["p"], "nan", {}),
        ("Where", ["nan", "zero", "p"], "r", {}),
        ("MatMul", ["r", "v"], "y", {}),
    ]
    known = {"inf": np.float32(-np.inf), "low": np.float32(-1e9), "zero": np.float32(0)}
    return model(
        rows,
        {n: v for n, v in known.items() if n in (mask, "zero")},
        {"q": [2, 5, 4], "k": [2, 4, 6], "v": [2, 6, 4], "keep": [2, 1, 6]},
        ["y"],
        types={"keep": onnx.TensorProto.BOOL},
    )


FEEDS = {
    "q": normal(2, 5, 4), "k": normal(2, 4, 6), "v": normal(2, 6, 4),
    "keep": np.arange(12).reshape(2, 1, 6) % 5 > 1,
}  # fmt: skip


def test_guards_behind_infinite_masks_stay_unless_the_caller_accepts():
    built = guarded("inf")
    done = check(built, FEEDS)
    assert set(done.left.values()) == {
        "attention: its operands have 3 dimensions, not batch, heads, tokens and size",
        "a row of its mask may be -inf only",
    }
    assert ops(done.model)["IsNaN"] == 1
    accepted = check(built, FEEDS, accept=["nan-guards"])
    assert accepted.relaxed == ("nan-guards: r",)
    assert ops(accepted.model)["IsNaN"] == 0


def test_guards_behind_finite_masks_go():
    done = check(guarded("low"), FEEDS)
    assert ops(done.model)["IsNaN"] == 0
    assert "nan-guards" in done.changes
    assert not done.relaxed


def test_gate_and_up_are_merged():
    rows: list[Row] = [
        ("MatMul", ["x", "gate"], "g", {}),
        ("Sigmoid", ["g"], "sg", {}),
        ("Mul", ["g", "sg"], "silu", {}),
        ("MatMul", ["x", "up"], "u", {}),
        ("Mul", ["silu", "u"], "h", {}),
        ("MatMul", ["h", "down"], "y", {}),
    ]
    weights = {"gate": normal(8, 12), "up": normal(8, 12, seed=1), "down": normal(12, 8, seed=2)}
    built = model(rows, weights, {"x": ["b", "s", 8]}, ["y"])
    feeds = {"x": normal(2, 5, 8, seed=3)}
    assert ops(check(built, feeds).model)["MatMul"] == 2
    assert ops(check(built, feeds, merge=False).model)["MatMul"] == 3


def test_it_changes_nothing_the_second_time():
    built, _ = zoo("bert.legacy")
    once = clean_up(built)
    again = clean_up(once.model)
    assert ops(again.model) == ops(once.model)
    assert not again.changes


def test_more_dynamic_dimensions_than_can_be_told_apart_are_reported():
    names = [f"x{i}" for i in range(7)]
    rows: list[Row] = [("Identity", [n], f"i{n}", {}) for n in names]
    rows += [
        ("MatMul", ["ix0", "ix1"], "s", {}),
        ("Softmax", ["s"], "p", {"axis": -1}),
        ("MatMul", ["p", "ix2"], "o", {}),
        ("Sum", ["o", *(f"i{n}" for n in names[3:])], "y", {}),
    ]
    built = model(rows, {}, {n: [2, 3, f"{n}a", f"{n}b"] for n in names}, ["y"])
    done = check(built, {n: normal(2, 3, 4, 4) for n in names})
    assert list(done.left.values()) == ["shapes: 14 dynamic dimensions, more than 12"]
    assert ops(done.model)["Identity"] == ops(done.model)["Attention"] == 0


def test_constants_are_folded_again_only_where_something_changed(monkeypatch):
    folded = []
    fold = FoldConstants.rewrite
    monkeypatch.setattr(
        FoldConstants, "rewrite", lambda *given: folded.append(given) or fold(*given)
    )
    rows = [("MatMul", ["x", "w"], "a", {}), ("Relu", ["a"], "y", {})]
    done = clean_up(model(rows, {"w": normal(8, 8)}, {"x": ["n", 8]}, ["y"]))
    assert done.changes == ()
    assert len(folded) == 1
    folded.clear()
    rows = [("MatMul", ["x", f"w{i}"], f"m{i}", {}) for i in range(2)]
    rows += [("Add", ["m0", "m1"], "y", {})]
    weights = {f"w{i}": normal(8, 8, seed=i) for i in range(2)}
    done = clean_up(model(rows, weights, {"x": ["n", 8]}, ["y"]))
    assert "merge-parallel" in done.changes
    assert len(folded) == 2


def test_merging_starts_from_the_graph_that_is_clean_already(monkeypatch):
    rows = [("MatMul", ["x", f"w{i}"], f"m{i}", {}) for i in range(2)]
    rows += [("Add", ["m0", "m1"], "y", {})]
    weights = {f"w{i}": normal(8, 8, seed=i) for i in range(2)}
    job = open_version(model(rows, weights, {"x": ["n", 8]}, ["y"]), data="random:1")
    taken = []

    def counted(*arguments, **options):
        taken.append(options)
        return clean_up(*arguments, **options)

    monkeypatch.setattr("lwqc.compile.cleaned.clean_up", counted)
    known = cleaned(job, CleanUp(merge=False))
    activation_ranges(known).update({("mse", "x"): Range(-1, 1), ("mse", "m0"): Range(-2, 2)})
    plain, merged = known.model, cleaned(job, CleanUp(merge=True)).model
    assert len(taken) == 1
    # What the merged layer reads is the same; what the two computed is no longer there.
    assert activation_ranges(cleaned(job, CleanUp(merge=True))) == {("mse", "x"): Range(-1, 1)}
    assert [n.op_type for n in plain.graph].count("MatMul") == 2
    assert [n.op_type for n in merged.graph].count("MatMul") == 1


def test_where_the_optimizer_fails_the_model_stays_and_the_reason_is_told(monkeypatch):
    def failing(model, **_):
        model.graph.remove(model.graph[-1])
        raise ValueError("a rule broke")

    monkeypatch.setattr("onnxscript.optimizer.optimize_ir", failing)
    rows = [("Relu", ["x"], "h", {}), ("Neg", ["h"], "y", {})]
    built = model(rows, {}, {"x": [2, 3]}, ["y"])
    done = clean_up(built, fuse=False, merge=False)
    assert ops(done.model) == ops(built)
    assert "onnxscript's optimizer failed: a rule broke" in done.left.values()


def test_a_stored_output_stays_where_nothing_else_reads_it():
    norm = {name: np.abs(normal(4, seed=i)) for i, name in enumerate("gbmv")}
    rows = [("Conv", ["x", "w"], "c", {}), ("BatchNormalization", ["c", *norm], "y", {})]
    built = model(rows, {"w": normal(4, 3, 1, 1), **norm}, {"x": ["n", 3, 4, 4]}, ["y"])
    built.graph.outputs[:] = [built.graph.initializers["w"]]
    done = clean_up(built).model
    assert list(done.graph.initializers) == ["w"]
    assert [v.name for v in done.clone().graph.outputs] == ["w"]
