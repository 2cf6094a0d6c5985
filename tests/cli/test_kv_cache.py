"""`--kv-cache int8`: from the command line, in plans, and in steps one after the other."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest

import lwqc
from lwqc.decide.compress import open_version
from lwqc.decide.search.control import SearchControl
from lwqc.decide.strategy import row as row_of_models
from lwqc.errors import InputError
from lwqc.model import coded_caches, io
from lwqc.passes.code_caches import CodeCaches
from lwqc.plans.goals import Goals
from lwqc.runtime.session import Session
from lwqc.testing.text import model_of

HEADS, SIZE, WIDTH = 2, 8, 32
TEXT = """
<ir_version: 10, opset_import: ["" : 23]>
decoder (float[batch, new, 32] x, float[batch, 2, past, 8] past_k, float[batch, 2, past, 8] past_v,
         float[32, 32] w_q, float[32, 16] w_k, float[32, 16] w_v, float[32, 32] w_o)
  => (float[batch, new, 32] y, float[batch, 2, total, 8] present_k,
      float[batch, 2, total, 8] present_v)
{
  q = MatMul (x, w_q)
  k = MatMul (x, w_k)
  v = MatMul (x, w_v)
  a, present_k, present_v = Attention <q_num_heads: int = 4, kv_num_heads: int = 2>
    (q, k, v, , past_k, past_v)
  o = MatMul (a, w_o)
  y = Add (x, o)
}
"""
WEIGHTS = {
    name: (np.random.default_rng(seed).standard_normal((WIDTH, out)) / 6).astype(np.float32)
    for seed, (name, out) in enumerate([("w_q", 32), ("w_k", 16), ("w_v", 16), ("w_o", 32)])
}


def feeds(past: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {"x": (2, 5, WIDTH), **dict.fromkeys(("past_k", "past_v"), (2, HEADS, past, SIZE))}
    return {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}


@pytest.fixture
def decoder(tmp_path):
    path = tmp_path / "decoder.onnx"
    io.save(model_of(TEXT, WEIGHTS), path)
    data = tmp_path / "data"
    data.mkdir()
    for index, past in enumerate((0, 6, 9)):
        np.savez(data / f"{index}.npz", **feeds(past, index))
    return path


@pytest.fixture
def done(run):
    """Call a command that has to succeed."""

    def call(*arguments) -> None:
        code, _, told = run(*arguments)
        assert code == 0, told

    return call


def types(path) -> set[int]:
    graph = onnx.load(path).graph
    caches = [v for v in (*graph.input, *graph.output) if v.name.startswith(("past", "present"))]
    assert len(caches) == 4
    return {v.type.tensor_type.elem_type for v in caches}


COMMANDS = {
    "lower": ["lower"],
    "quantize": ["quantize", "--bits", "8"],
    "compress": ["compress", "--recipe", "w8", "--max-drop", "0.05"],
    "clean": ["compress", "--no-quantize"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_that_writes_a_model_stores_its_caches_in_8_bits(
    name, decoder, tmp_path, run
):
    out, (command, *more) = tmp_path / "out.onnx", COMMANDS[name]
    more = [*more, "--data", tmp_path / "data", "--json"]
    code, report, told = run(command, decoder, "-o", out, "--kv-cache", "int8", *more)
    assert code == 0, told
    assert types(out) == {onnx.TensorProto.INT8}
    told = " ".join(json.loads(report)["notes"])
    assert "2 caches in int8: 32 bytes for each token, 128 before" in told
    given = feeds(9, seed=2)  # of the data: beyond its ranges codes saturate
    before, after = Session(str(decoder))(given), Session(str(out))(given)
    for key, expected in before.items():
        error = np.abs(after[key] - expected).max()
        assert 0 < error <= 0.05 * np.abs(expected).max(), key


@pytest.mark.parametrize(
    "command",
    [["prune", "--ratio", "0.1"], ["drop", "--branches", "1", "--recipe", "llm-drop-mlp"]],
)
def test_what_removes_structure_stores_the_caches_that_are_left(command, decoder, tmp_path, done):
    text = TEXT.replace(
        "float[32, 32] w_o", "float[32, 32] w_o, float[32, 48] w_m, float[48, 32] w_n"
    )
    mlp = "s = Add (x, o)  m = MatMul (s, w_m)  r = Relu (m)  n = MatMul (r, w_n)  y = Add (s, n)"
    text = text.replace("y = Add (x, o)", mlp)
    more = {"w_m": np.full((32, 48), 0.1, np.float32), "w_n": np.full((48, 32), 0.1, np.float32)}
    io.save(model_of(text, {**WEIGHTS, **more}), decoder)
    out, data = tmp_path / "out.onnx", ["--data", tmp_path / "data"]
    done(command[0], decoder, "-o", out, "--kv-cache", "int8", *data, *command[1:])
    assert types(out) == {onnx.TensorProto.INT8}


def test_a_plan_has_it_and_replays_to_the_same_bytes(decoder, tmp_path, done):
    plan, data = tmp_path / "plan.json", ["--data", tmp_path / "data"]
    first, again = tmp_path / "first.onnx", tmp_path / "again.onnx"
    options = ["--kv-cache", "int8", "--recipe", "w8", *data]
    done("plan", decoder, "-o", plan, *options)
    assert json.loads(plan.read_text())["caches"] == "int8"
    done("compress", decoder, "-o", first, *options)
    done("apply", decoder, plan, "-o", again, *data)
    assert first.read_bytes() == again.read_bytes()


def test_files_with_codes_can_be_verified_and_lowered_again(decoder, tmp_path, done):
    coded, again, data = tmp_path / "c.onnx", tmp_path / "a.onnx", ["--data", tmp_path / "data"]
    done("lower", decoder, "-o", coded, "--kv-cache", "int8", *data)
    done("verify", decoder, coded, "--max-drop", "0.01", *data)
    done("quantize", coded, "-o", again, "--original", decoder, "--bits", "8", *data)
    assert types(again) == {onnx.TensorProto.INT8}
    given = feeds(9, seed=7)
    first, second = Session(str(coded))(given), Session(str(again))(given)
    assert np.allclose(first["present_k"], second["present_k"], atol=0.1)


def test_a_file_with_codes_takes_the_data_of_the_original_in_any_command(decoder, tmp_path, done):
    coded, data = tmp_path / "c.onnx", ["--data", tmp_path / "data"]
    done("lower", decoder, "-o", coded, "--kv-cache", "int8", *data)
    done("bench", coded, *data, "--seconds", "0.01")
    done("verify", coded, coded, *data)
    done("inspect", coded, "--branches", *data)
    for number, options in enumerate((
        ["compress", coded],
        ["compress", coded, "--original", decoder],
        ["quantize", coded, "--original", decoder, "--bits", "4", "--method", "gptq"],
    )):  # fmt: skip
        out = tmp_path / f"{number}.onnx"
        done(*options, "-o", out, *data)
        assert types(out) == {onnx.TensorProto.INT8}
        given = feeds(9, seed=2)
        before, after = Session(str(decoder))(given), Session(str(out))(given)
        for key in ("present_k", "present_v"):
            assert np.abs(after[key] - before[key]).max() < 0.2 * np.abs(before[key]).max()


def test_a_second_coding_keeps_what_is_told_of_the_first():
    model = model_of(TEXT, WEIGHTS)
    scale = np.full((1, HEADS, 1, SIZE), 0.05, np.float32)
    for name in ("past_k", "past_v"):
        assert CodeCaches({name: scale})(model).modified
    given = feeds(6)
    before, after = Session(model_of(TEXT, WEIGHTS))(given), Session(model)(given)
    for key in ("present_k", "present_v"):
        assert np.abs(after[key] - before[key]).max() <= 0.0251


@pytest.mark.parametrize("faint", [1e-33, 1e-38, 0.0])
def test_a_channel_of_next_to_nothing_is_no_obstacle(faint, tmp_path):
    weights = {name: value.copy() for name, value in WEIGHTS.items()}
    weights["w_k"][:, 3] *= np.float32(faint)
    data = [{**feeds(past, past)} for past in (0, 4)]
    for one in data:
        one["past_k"][:, 0, :, 3] *= np.float32(faint)
    coded = lwqc.lower(model_of(TEXT, weights), target="cpu", kv_cache="int8", data=data)
    coded.save(tmp_path / "out.onnx")
    outputs = Session(str(tmp_path / "out.onnx"))(data[1])
    assert np.abs(outputs["present_k"][:, 0, :, 3]).max() < 1e-5


def test_keys_without_codes_are_refused():
    data = [{**one, "past_k": one["past_k"] * np.float32(1e30)} for one in (feeds(3), feeds(4))]
    with pytest.raises(InputError, match=r"past_k: keys or values up to .* on the data: no codes"):
        lwqc.lower(model_of(TEXT, WEIGHTS), target="cpu", kv_cache="int8", data=data)


def test_codes_are_not_trained_on_and_floats_are_no_codes_in_torch():
    pytest.importorskip("torch", reason="needs the extra lwqc[torch]")
    data = [feeds(past, past) for past in (0, 4)]
    model = model_of(TEXT, WEIGHTS)
    coded = lwqc.lower(model, target="cpu", kv_cache="int8", data=data)
    with pytest.raises(InputError, match="recover first, then --kv-cache"):
        lwqc.recover(coded.model, teacher=model, data=data)
    with pytest.raises(InputError, match="past_k: floats were given for an input of whole numbers"):
        lwqc.to_torch(coded.model)(**data[1])


def test_numbers_that_have_no_codes_are_refused_by_sessions():
    model = model_of(TEXT, WEIGHTS)
    CodeCaches({"past_k": np.ones((1, HEADS, 1, SIZE), np.float32)})(model)
    given = feeds(3)
    given["past_k"][0, 0, 0, 0] = np.nan
    with pytest.raises(InputError, match="past_k: holds NaN or infinity"):
        Session(model)(given)


def test_python_has_it_and_steps_follow_one_another(decoder, tmp_path):
    data = [feeds(past, past) for past in (0, 4)]
    coded = lwqc.lower(str(decoder), target="cpu", kv_cache="int8", data=data)
    done = lwqc.quantize(coded, bits=8)
    done.save(tmp_path / "out.onnx")
    assert types(tmp_path / "out.onnx") == {onnx.TensorProto.INT8}


def test_every_model_of_a_row_has_it(decoder):
    data = [feeds(past, past) for past in (0, 4)]
    work = open_version(str(decoder), data=data, kv_cache="int8")
    models = list(row_of_models(work, Goals(max_size=0.6), "auto", SearchControl(), 2))
    assert models
    for done in models:
        assert coded_caches.KEY in done.model.metadata_props


BAD = {
    "no data": (["--kv-cache", "int8"], "give --data"),
    "another target": (["--kv-cache", "int8", "--target", "cuda", "--data", "DATA"], "cuda"),
    "another type": (
        ["--kv-cache", "int3", "--data", "DATA"],
        "expected one of int8; did you mean 'int8'",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_had_is_refused_before_any_work(name, decoder, tmp_path, run):
    options, said = BAD[name]
    out = tmp_path / "out.onnx"
    options = [str(tmp_path / "data") if o == "DATA" else o for o in options]
    code, _, told = run("quantize", decoder, "-o", out, *options)
    assert code == 2
    assert said in told
    assert not out.exists()


def test_a_model_without_caches_is_refused_with_the_reason(tmp_path):
    text = (
        TEXT.replace("(q, k, v, , past_k, past_v)", "(q, k, v)")
        .replace("a, present_k, present_v =", "a =")
        .replace("o = MatMul", "present_k = Abs (past_k)\n  present_v = Abs (past_v)\n  o = MatMul")
    )
    path = tmp_path / "encoder.onnx"
    io.save(model_of(text, WEIGHTS), path)
    with pytest.raises(InputError, match="no input of float32 keys or values"):
        lwqc.lower(str(path), target="cpu", kv_cache="int8", data=[feeds(4)])


def test_metadata_of_strangers_is_an_error_in_one_line_or_has_no_effect():
    with pytest.raises(InputError, match="is not what lwqc writes"):
        coded_caches.caches_of({coded_caches.KEY: '{"past_k": {"output": 3}}'})
    with pytest.raises(InputError, match="is not what lwqc writes"):
        coded_caches.caches_of({coded_caches.KEY: '{"a": {"output": "b", "scale": [[1], [1, 2]]}}'})
    told = coded_caches.entry({"past_k": ("y", np.ones((1, 3, 1, 5), np.float32))})
    model = model_of(TEXT, WEIGHTS)
    given = feeds(4)
    before = Session(model)(given)
    other = model_of(TEXT, WEIGHTS)
    other.metadata_props[coded_caches.KEY] = told
    after = Session(other)(given)
    assert all(np.array_equal(before[name], after[name]) for name in before)
