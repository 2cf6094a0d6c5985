"""Quantization of models as strangers write them, and of weights that are out of the ordinary."""

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import lwqc
from lwqc.compile.losses import divergences
from lwqc.decide.compress import compress_version, open_version
from lwqc.model import io
from lwqc.plans.bounds import Amount
from lwqc.plans.goals import Goals
from lwqc.plans.recipe import find, uniform_recipe
from lwqc.quant.output_error import output_error
from lwqc.runtime.session import Session
from tests.build import model, normal
from tests.test_chains import convolutions


def bare(weights=None, dtype=np.float32):
    """A perceptron whose nodes have no names and whose tensors have no types."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    weights = weights or {
        "w1": normal(64, 96, scale=0.12),
        "w2": normal(96, 64, seed=1, scale=0.1),
        "w3": normal(64, 32, seed=2, scale=0.12),
    }
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w1"], ["a"]),
            helper.make_node("Relu", ["a"], ["b"]),
            helper.make_node("MatMul", ["b", "w2"], ["c"]),
            helper.make_node("Relu", ["c"], ["d"]),
            helper.make_node("MatMul", ["d", "w3"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", kind, ["n", 64])],
        [helper.make_tensor_value_info("y", kind, ["n", 32])],
        [numpy_helper.from_array(v.astype(dtype), n) for n, v in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def feeds(dtype=np.float32, count=4):
    return [{"x": normal(64, 64, seed=i).astype(dtype)} for i in range(count)]


def error(work, done):
    found = divergences(work, Session(done.model, label="compressed"))
    return next(iter(found.values())).relative_error


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("recipe", ["w4", "gptq", "gpfq", "awq", "smoothquant", "dgq", "lorc"])
def test_nodes_without_names_and_tensors_without_types(recipe, dtype):
    work = open_version(bare_ir(dtype), data=feeds(dtype))
    done = compress_version(work, Goals(), find(recipe))
    assert len(done.decisions.quantize) == 3
    assert error(work, done) < 0.03


def bare_ir(dtype=np.float32, weights=None):
    import onnx_ir as ir

    return ir.from_proto(bare(weights, dtype))


@pytest.mark.parametrize("scale", [1e-20, 1e-7, 1e-4, 1e4, 1e10])
@pytest.mark.parametrize("bits", [8, 4])
def test_weights_of_any_magnitude_keep_their_values(scale, bits):
    rest = 0.1 / scale**0.5
    weights = {
        "w1": normal(64, 96, scale=scale),
        "w2": normal(96, 64, seed=1, scale=rest),
        "w3": normal(64, 32, seed=2, scale=rest),
    }
    work = open_version(bare_ir(weights=weights), data=feeds())
    done = compress_version(work, Goals(), uniform_recipe(bits, "none", "mse"))
    assert len(done.decisions.quantize) == 3
    assert error(work, done) < (0.0005 if bits == 8 else 0.03)


def test_a_weight_with_nan_stays_float_with_that_reason():
    weights = {"w1": normal(64, 96), "w2": normal(96, 64, seed=1), "w3": normal(64, 32, seed=2)}
    weights["w2"][3, 4] = np.nan
    for recipe in ("w4", "knapsack"):
        goals = Goals(avg_bits=20) if recipe == "knapsack" else Goals()
        work = open_version(bare_ir(weights=weights))
        plan = compress_version(work, goals, find(recipe)).decisions
        assert "NaN" in plan.kept_float["w2"]
        assert set(plan.quantize) == {"w1", "w3"}


def test_two_budgets_are_both_kept():
    work = open_version(bare_ir(), data=feeds())
    for bound, bits in ((0.9, 5.0), (0.3, 20.0)):
        goals = Goals(max_size=Amount(bound, True), avg_bits=bits)
        done = compress_version(work, goals, find("knapsack"))
        rows = [(e.size_bytes(*shape(work, n)), n) for n, e in done.decisions.quantize.items()]
        stored = sum(b for b, _ in rows)
        assert 8 * stored / sum(s.size for s in work.analysis.sites) <= bits


def shape(work, name):
    return work.sites[name].n, work.sites[name].k


def read_twice(second):
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["a"]),
            helper.make_node("Tanh", ["a"], ["b"]),
            second,
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 64])],
        [numpy_helper.from_array(normal(64, 64, scale=0.2), "w")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(proto)
    return proto


def test_a_shared_weight_is_fitted_to_the_inputs_of_all_its_readers():
    """Also of the second, whose inputs are as many and not the same."""
    proto = read_twice(helper.make_node("MatMul", ["b", "w"], ["y"]))
    drops = {}
    for method in ("gptq", "rtn"):
        done = lwqc.quantize(proto, bits=4, data=feeds(), method=method)
        assert done.decisions.quantize["w"].method == method
        assert "w" not in done.decisions.kept_float
        drops[method] = lwqc.verify(proto, done.model, data=feeds())["y"].drop
    assert drops["gptq"] < drops["rtn"]


def test_a_shared_weight_that_one_reader_transposes_is_rounded_to_nearest_and_listed():
    second = helper.make_node("Gemm", ["b", "w"], ["y"], transB=1)
    done = lwqc.quantize(read_twice(second), bits=4, data=feeds(), method="gptq")
    assert done.decisions.quantize["w"].method == "rtn"
    assert "in different ways" in done.decisions.kept_float["w"]


def test_an_embedding_that_is_also_the_head_is_fitted_to_the_head():
    """A Gather does not multiply: the one product that reads the weight decides."""
    weight = normal(96, 64, scale=0.2)
    built = model(
        [
            ("Gather", ["w", "i"], "e", {}),
            ("Add", ["e", "x"], "s", {}),
            ("Transpose", ["w"], "t", {"perm": [1, 0]}),
            ("MatMul", ["s", "t"], "y", {}),
        ],
        {"w": weight},
        {"i": ["n"], "x": ["n", 64]},
        ["y"],
        types={"i": TensorProto.INT64},
    )
    data = [{"i": np.arange(96), "x": normal(96, 64, seed=2) * (np.arange(64) < 8)}]
    data[0]["x"] = data[0]["x"].astype(np.float32) * 20
    done = {m: lwqc.quantize(built, bits=4, data=data, method=m) for m in ("rtn", "gptq")}
    assert done["gptq"].decisions.quantize["w"].method == "gptq"
    work = done["gptq"].work
    gram, entries = work.grams("w"), {m: d.decisions.quantize["w"] for m, d in done.items()}
    errors = {
        m: output_error(weight, work.weights.get("w", entry).decode(), gram)
        for m, entry in entries.items()
    }
    assert errors["gptq"] < 0.8 * errors["rtn"]


def test_dead_inputs_do_not_mislead_greedy_path_following():
    """Calibration shows nothing on half of the inputs; the codes there stay the nearest ones."""
    dead = [{"x": f["x"] * (np.arange(64) < 32).astype(np.float32)} for f in feeds()]
    work = open_version(bare_ir(), data=dead)
    judged = open_version(bare_ir(), data=feeds())
    plain, greedy = (
        error(judged, compress_version(work, Goals(), uniform_recipe(4, "none", "mse", True, m)))
        for m in ("rtn", "gpfq")
    )
    assert greedy < 1.2 * plain


def test_an_exact_weight_does_not_count_as_insensitive(slow_low_bits):
    """A weight on the 4-bit grid has no error there, which says nothing about 2 bits."""
    codes = np.random.default_rng(0).integers(-8, 8, (64, 96)).astype(np.float32)
    codes[::32] = -8
    weights = {"w1": codes / 64, "w2": normal(96, 64, seed=1, scale=0.1),
               "w3": normal(64, 32, seed=2, scale=0.1)}  # fmt: skip
    work = open_version(bare_ir(weights=weights), data=feeds())
    plan = compress_version(work, Goals(avg_bits=3.9), find("knapsack")).decisions
    assert plan.quantize["w1"].weight.bits == 4


@pytest.mark.parametrize(
    "arguments",
    [
        ["--bits", "mixed", "--method", "gptq", "--avg-bits", "4.5"],
        ["--bits", "4", "--sequential"],
        ["--bits", "mixed", "--activations", "static", "--avg-bits", "5"],
        ["--bits", "mixed", "--no-search", "--avg-bits", "5"],
    ],
)
def test_options_that_would_be_ignored_are_refused(arguments, tmp_path, run):
    source = tmp_path / "in.onnx"
    onnx.save(bare(), source)
    code, _, err = run("quantize", source, "-o", tmp_path / "out.onnx", *arguments)
    assert code == 2
    assert err.count("\n") <= 2
    assert not (tmp_path / "out.onnx").exists()


def test_a_recipe_whose_method_looks_at_data_takes_another_without():
    plan = lwqc.compress(bare(), recipe="gpfq").plan
    assert {entry.method for entry in plan.quantize.values()} <= {"rtn", "k-quant", "hqq"}
    assert any("gpfq" in note for note in plan.notes)


@pytest.mark.parametrize("recipe", [None, "smoothquant"])
def test_static_activations_are_not_held_up_by_normalization(recipe):
    """Behind an 8-bit convolution it would take conversions, and a pass over floats."""
    net = convolutions()
    data = [{"x": normal(2, 16, 6, 6, seed=i)} for i in range(4)]
    if recipe is None:
        made = lwqc.quantize(net, bits=8, activations="static", data=data)
    else:
        made = lwqc.compress(net, recipe=recipe, data=data)
    ops = [node.op_type for node in made.model.graph]
    assert "BatchNormalization" not in ops
    assert made.decisions.clean is not None
    assert "BatchNormalization" in [node.op_type for node in net.graph]


def test_what_has_no_weight_is_cleaned_up_by_default_and_refused_by_formats(run, tmp_path):
    rows = [("Identity", ["x"], "a", {}), ("Neg", ["a"], "b", {}), ("Abs", ["b"], "y", {})]
    path, out = tmp_path / "m.onnx", tmp_path / "o.onnx"
    io.save(model(rows, {}, {"x": ["n", 8]}, ["y"]), path)
    code, text, _ = run("compress", path, "-o", out, "--json")
    assert code == 0
    assert (
        "has no weight that could take a number format: only cleaned up"
        in json.loads(text)["notes"]
    )
    assert {"Neg", "Abs"} <= {n.op_type for n in onnx.load(out).graph.node}
    code, _, err = run("compress", path, "-o", tmp_path / "p.onnx", "--recipe", "w8")
    assert (code, err.count("\n")) == (2, 1)
    assert "has no weight that could take a number format" in err
    assert not (tmp_path / "p.onnx").exists()
