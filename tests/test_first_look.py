"""What commands show says what it means: sizes, reasons, and nothing where there is nothing."""

import json

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

import lwqc
from lwqc.decide import planning, safest
from lwqc.decide.compress import open_version
from lwqc.decide.explain.inspection import inspect_model
from lwqc.errors import InputError
from tests.build import model, normal
from tests.test_odd_places import (
    I64,
    F,
    N,
    embedding_tied_to_a_product_in_a_loop,
    made,
    stored,
    tied_oblong_matrix,
    v,
    w,
)


@pytest.fixture
def file(tmp_path):
    onnx.save(tied_oblong_matrix(), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def test_bench_shows_the_sizes_of_the_files(run, file):
    code, text, error = run("bench", file, "--seconds", "0.01")
    assert (code, error) == (0, "")
    assert f"{file.stat().st_size / 1e3:.2f} kB" in " ".join(text.split())
    _, text, _ = run("bench", file, "--seconds", "0.01", "--json")
    assert json.loads(text)[str(file)]["size_bytes"] == file.stat().st_size


def test_inspect_refuses_sizes_that_the_inputs_do_not_have(run, file):
    code, _, error = run("inspect", file, "--shape", "nn=3")
    assert code == 2
    assert "shape nn: the inputs have no such dimension; expected one of n" in error
    assert run("inspect", file, "--shape", "n=3")[0] == 0


def test_inspect_shows_numbers_that_were_fed_as_numbers():
    nodes = [N("MatMul", ["x", "w"], ["a"]), N("Mul", ["a", "f"], ["y"])]
    proto = made(nodes, [v("x", "n", 64), v("f")], [v("y", "n", 64)], [w("w", 64, 64)])
    found = inspect_model(ir.serde.deserialize_model(proto)).shapes
    assert found.startswith("observed with x [1, 64], f = ")
    float(found.rpartition("=")[2])


def test_inspect_says_of_which_nodes_macs_are_not_known_and_why(run, tmp_path):
    onnx.save(embedding_tied_to_a_product_in_a_loop(), tmp_path / "m.onnx")
    code, text, _ = run("inspect", tmp_path / "m.onnx")
    text = " ".join(text.split())
    assert code == 0
    assert "MACs unknown" in text
    assert "MACs are not known of 1 nodes: 1 x in the body of an If, Loop or Scan" in text
    costs = json.loads(run("inspect", tmp_path / "m.onnx", "--json")[1])["costs"]
    assert [c["op"] for c in costs if c["unknown"]] == ["MatMul"]


def test_there_is_no_cosine_of_single_numbers_and_of_labels(run, tmp_path):
    rows = [
        ("MatMul", ["x", "w"], "score", {}),
        ("MatMul", ["x", "k"], "logits", {}),
        ("ArgMax", ["logits"], "label", {"axis": 1, "keepdims": 0}),
    ]
    weights = {"w": normal(64, 1), "k": normal(64, 8, seed=1)}
    given = {"logits": 1, "label": int(I64), "score": 1}
    built = model(rows, weights, {"x": [4, 64]}, list(given), types=given)
    data = [{"x": normal(4, 64, seed=3)}]
    found = lwqc.verify(built, built, data=data)
    assert {n: d.cosine_mean for n, d in found.items()} == {
        "score": None,
        "logits": 1,
        "label": None,
    }
    assert {d.samples for d in found.values()} == {4}
    path = tmp_path / "m.onnx"
    lwqc.save(built, path)
    text = run("verify", path, path)[1]
    assert text.count("n/a") == 2
    outputs = json.loads(run("verify", path, path, "--json")[1])["outputs"]
    assert outputs["score"]["cosine_min"] is None


def test_reasons_name_the_bound_that_was_asked_for(monkeypatch):
    """Codes that were fitted to the data have to hold within a part of it."""
    work = open_version(
        ir.serde.deserialize_model(tied_oblong_matrix()), data=[{"x": normal(8, 64)}]
    )
    monkeypatch.setattr(
        safest, "known_drop", lambda work, plan, *, on_all=False: float(bool(plan.quantize))
    )
    monkeypatch.setattr(planning, "with_method", lambda work, plan, method: plan)
    monkeypatch.setattr(safest._Trials, "fewest_bytes", lambda self, finer: None)
    monkeypatch.setattr(safest, "with_room", lambda plan, limit: safest._UNSEEN * limit)
    plan = safest.holding(work, 0.01, "auto", "gptq")
    assert set(plan.kept_float.values()) == {
        "8 bits lose more than 0.0025 here, 0.25 of the 0.01 allowed: "
        "data they were not fitted to has to have room"
    }


def test_tensorrt_has_no_sequences():
    nodes = [
        N("MatMul", ["x", "w"], ["a"]),
        N("SplitToSequence", ["a", "sizes"], ["s"], axis=1),
        N("SequenceAt", ["s", "first"], ["p"]),
        N("MatMul", ["p", "k"], ["y"]),
    ]
    weights = [w("w", 64, 96), w("k", 60, 20), stored("sizes", [60, 36]), stored("first", 0)]
    pieces = helper.make_tensor_sequence_value_info("s", F, None)
    proto = made(nodes, [v("x", 4, 64)], [v("y", 4, 20), pieces], weights)
    with pytest.raises(InputError, match="s is a sequence or an optional; TensorRT has tensors"):
        lwqc.lower(ir.serde.deserialize_model(proto), target="tensorrt")


def test_operators_that_stay_integer_say_why_where_the_target_has_none():
    """MatMulNBits with an order of its inputs, as QLLM writes it."""
    codes = np.random.default_rng(0).integers(0, 256, (48, 2, 16)).astype(np.uint8)
    weights = [
        stored("q", codes, np.uint8),
        stored("scale", np.full(96, 0.02), np.float32),
        stored("order", np.arange(64)[::-1] // 32, np.int32),
    ]
    node = N(
        "MatMulNBits", ["x", "q", "scale", "", "order"], ["y"], domain="com.microsoft",
        K=64, N=48, bits=4, block_size=32,
    )  # fmt: skip
    graph = helper.make_graph([node], "g", [v("x", "n", 64)], [v("y", "n", 48)], weights)
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    proto = helper.make_model(graph, opset_imports=imports, ir_version=8)
    with pytest.raises(InputError, match=r"order of their own \(g_idx\).*--allow-fallback"):
        lwqc.lower(ir.serde.deserialize_model(proto), target="tensorrt")
