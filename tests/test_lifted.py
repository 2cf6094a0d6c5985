"""Models in operator sets that are too old for the formats asked for."""

import json

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

import lwqc
from lwqc.compile.execute import apply_plan
from lwqc.decide.compress import compress_version, open_version
from lwqc.passes import raise_opset as module
from lwqc.passes.raise_opset import raise_opset
from lwqc.plans.goals import Goals
from lwqc.plans.recipe import find
from lwqc.runtime.session import Session
from tests.build import normal
from tests.test_odd_places import N, body, stored, v, w

FEEDS = [{"x": normal(2, 3, 8, 8, seed=i)} for i in range(4)]
PADS = {"pads": [1] * 4, "kernel_shape": [3, 3]}


def convolutions(opset: int, middle=None, more=()) -> onnx.ModelProto:
    """Operators whose attributes became operands, or which changed their meaning, on the way."""
    nodes = [
        N("Conv", ["x", "w1"], ["a"], name="first", **PADS),
        N("Clip", ["a", "low", "high"], ["b"]) if opset > 10 else N("Clip", ["a"], ["b"], max=6.0),
        N("Conv", ["b", "w2"], ["c"], name="second", **PADS),
        N("ReduceMean", ["c"], ["m"], axes=[2, 3], keepdims=1),
        N("Squeeze", ["m"], ["s"], axes=[2, 3]),
        N("Gemm", ["s", "w3", "bias"], ["g"]),
        *([middle] if middle else []),
        N("Softmax", ["z" if middle else "g"], ["y"], axis=1),
    ]
    weights = [w("w1", 32, 3, 3, 3), w("w2", 32, 32, 3, 3), w("w3", 32, 64), w("bias", 64), *more]
    if opset > 10:
        weights += [stored("low", -1, np.float32), stored("high", 6, np.float32)]
    return old(opset, nodes, v("x", "n", 3, "h", "w"), v("y", "n", 64), weights)


def old(opset, nodes, given, result, weights) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "g", [given], [result], weights)
    imports = [helper.make_opsetid("", opset)]
    proto = helper.make_model(graph, opset_imports=imports, ir_version=6)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def branched() -> onnx.ModelProto:
    """Bodies are converted with the rest."""
    then, other = (
        body([N("Unsqueeze", ["g"], [f"{n}u"], axes=[0]), N("Squeeze", [f"{n}u"], [n], axes=[0])],
             [], [v(n, "n", 64)])
        for n in ("t", "e")
    )  # fmt: skip
    flag = onnx.helper.make_tensor("flag", onnx.TensorProto.BOOL, [], [True])
    return convolutions(12, N("If", ["flag"], ["z"], then_branch=then, else_branch=other), [flag])


def signature(proto) -> list[bytes]:
    return [value.SerializeToString() for value in (*proto.graph.input, *proto.graph.output)]


def near(before: onnx.ModelProto, after: ir.Model, most: float) -> None:
    reference, session = Session(ir.serde.deserialize_model(before)), Session(after)
    for feeds in FEEDS:
        assert np.abs(reference(feeds)["y"] - session(feeds)["y"]).max() <= most


@pytest.mark.parametrize(("opset", "target"), [(9, "cpu-vnni"), (11, "cpu-avx2"), (12, "cpu-arm")])
def test_static_activations_raise_the_opset_and_change_nothing_else(opset, target):
    proto = convolutions(opset)
    done = lwqc.quantize(
        ir.serde.deserialize_model(proto), activations="static", data=FEEDS, target=target
    )
    assert {n: e.activation for n, e in done.decisions.quantize.items()} == dict.fromkeys(
        ("w1", "w2", "w3"), "static"
    )
    assert done.decisions.opset == done.model.opset_imports[""] == 13
    assert done.decisions.notes == (
        f"opset {opset} became 13, which formats of target {target} need",
    )
    written = ir.serde.serialize_model(done.model)
    onnx.checker.check_model(written, full_check=True)
    assert signature(written) == signature(proto)
    assert {"first", "second"} <= {n.name for n in written.graph.node}
    near(proto, done.model, 0.02)


def test_bodies_are_raised_too():
    proto = branched()
    model = ir.serde.deserialize_model(proto)
    assert (raise_opset(model, 13), model.opset_imports[""]) == ("", 13)
    near(proto, model, 0)


def test_what_formats_do_not_need_is_not_raised():
    proto = convolutions(12)
    done = lwqc.quantize(ir.serde.deserialize_model(proto), bits=4)
    assert set(done.decisions.quantize) == {"w1", "w2", "w3"} - set(done.decisions.kept_float)
    assert (done.decisions.opset, done.decisions.notes) == (None, ())
    assert done.model.opset_imports[""] == 12


@pytest.mark.parametrize("recipe", ["auto", "w8a8-fused", "knapsack"])
def test_the_plan_says_it_and_is_applied_again(recipe):
    model = ir.serde.deserialize_model(convolutions(9))
    work = open_version(model, data=FEEDS, skip_checks=True)
    goals = Goals() if recipe == "auto" else Goals(max_size=0.5)
    done = compress_version(work, goals, find(recipe))
    again = apply_plan(open_version(model, data=FEEDS), done.plan)
    assert ir.to_proto(again.model) == ir.to_proto(done.model)
    near(convolutions(9), done.model, 0.1)


def test_a_search_for_formats_raises_it_too():
    model = ir.serde.deserialize_model(convolutions(9))
    goals, recipe = Goals(max_size=0.4), find("evopress-bits")
    done = compress_version(open_version(model, data=FEEDS), goals, recipe)
    assert done.decisions.opset == 13
    assert "opset 9 became 13" in done.decisions.notes[0]
    again = apply_plan(open_version(model, data=FEEDS), done.plan)
    assert ir.to_proto(again.model) == ir.to_proto(done.model)


def test_what_cannot_be_raised_says_why(run, tmp_path, monkeypatch):
    path, out = tmp_path / "m.onnx", tmp_path / "o.onnx"
    onnx.save(convolutions(12), path)
    monkeypatch.setattr("lwqc.passes.raise_opset._converted", lambda model, version: "no adapter")
    data = tmp_path / "d.npz"
    np.savez(data, x=FEEDS[0]["x"])
    options = ["--activations", "static", "--data", data, "--target", "cpu-vnni", "--json"]
    code, text, error = run("quantize", path, "-o", out, *options)
    assert code == 0, error
    report = json.loads(text)
    assert report["notes"] == ["the model stays in opset 12: no adapter"]
    reasons = {row["name"]: row["reason"] for row in report["sites"]}
    assert reasons["w2"] == "weight only: needs opset 13, the model has 12"
    assert onnx.load(out).opset_import[0].version == 12


def test_what_would_compute_something_else_is_not_raised(monkeypatch):
    real = module._converted

    def spoil(model, version):
        real(model, version)
        node = next(n for n in model.graph if n.op_type == "Softmax")
        node.attributes["axis"] = ir.AttrInt64("axis", 0)
        return ""

    monkeypatch.setattr(module, "_converted", spoil)
    done = lwqc.quantize(
        ir.serde.deserialize_model(convolutions(12)), activations="static", data=FEEDS
    )
    (note,) = done.decisions.notes
    assert "stays in opset 12: in opset 13 its outputs would move" in note
    assert done.model.opset_imports[""] == 12


def codes_in_opset_11() -> onnx.ModelProto:
    """Pairs with one scale for each weight and activation."""
    numbers = {"sx": 0.03, "sw": 0.01, "sa": 0.05}
    scales = [stored(n, s, np.float32) for n, s in numbers.items()]
    codes = np.random.default_rng(0).integers(-60, 60, (2, 32, 32, 3, 3))
    nodes, value = [N("Conv", ["x", "w0"], ["a0"], **PADS)], "a0"
    for i in range(2):
        nodes += [
            N("QuantizeLinear", [value, "sx" if i else "sa", "zero"], [f"q{i}"]),
            N("DequantizeLinear", [f"q{i}", "sx" if i else "sa", "zero"], [f"d{i}"]),
            N("DequantizeLinear", [f"c{i}", "sw", "mid"], [f"w{i}f"]),
            N("Conv", [f"d{i}", f"w{i}f"], [f"b{i}"], **PADS),
        ]
        value = f"b{i}"
    nodes += [
        N("QuantizeLinear", [value, "sa", "zero"], ["q2"]),
        N("DequantizeLinear", ["q2", "sa", "zero"], ["d2"]),
        N("GlobalAveragePool", ["d2"], ["y"]),
    ]
    weights = [w("w0", 32, 3, 3, 3), *scales, stored("zero", 128, np.uint8)]
    weights += [stored("mid", 0, np.int8), *(stored(f"c{i}", codes[i], np.int8) for i in range(2))]
    return old(11, nodes, v("x", "n", 3, 8, 8), v("y", "n", 32, 1, 1), weights)


def test_codes_and_ranges_of_an_old_file_are_kept():
    proto = codes_in_opset_11()
    done = lwqc.lower(ir.serde.deserialize_model(proto), target="cpu-vnni", data=FEEDS)
    assert [e.activation for e in done.decisions.quantize.values()] == ["static", "static"]
    assert done.decisions.opset == 13
    assert signature(ir.serde.serialize_model(done.model)) == signature(proto)
