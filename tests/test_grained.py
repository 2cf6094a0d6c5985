"""Weights that are 4 bits in the file and 8 at run time, from the command line to the file."""

import json
import sys

import numpy as np
import pytest

import lwqc
from lwqc import cli
from lwqc.model import io
from lwqc.plans.plan import Plan
from lwqc.runtime.session import Session
from tests.build import model, normal
from tests.processor import NATIVE, WHOLE

ROWS = [("MatMul", ["x", "a"], "h", {}), ("Relu", ["h"], "r", {}),
        ("Gemm", ["r", "b", "c"], "y", {"transB": 1})]  # fmt: skip


def small():
    weights = {"a": normal(160, 96, scale=0.1), "b": normal(64, 96, scale=0.1), "c": normal(64)}
    return model(ROWS, weights, {"x": ["m", 160]}, ["y"])


def run(arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["lwqc", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return caught.value.code, capsys.readouterr()


@pytest.mark.parametrize(("kind", "activations"), [("dg", "dynamic"), ("e2m1", "static")])
def test_from_the_command_line_and_replayed(kind, activations, tmp_path, monkeypatch, capsys):
    net, first, again, saved = (tmp_path / n for n in ("m.onnx", "a.onnx", "b.onnx", "p.json"))
    np.savez(tmp_path / "x.npz", x=normal(128, 160))
    io.save(small(), net)
    data = ["--data", tmp_path / "x.npz"]
    code, printed = run(
        ["quantize", net, "-o", first, *data, "--format", f"{kind}w8b32", "--method", "gptq",
         "--activations", activations, "--plan-out", saved, "--json"], monkeypatch, capsys,
    )  # fmt: skip
    assert code == 0, printed.err
    rows = json.loads(printed.out)["sites"]
    assert {r["kernel"] for r in rows} == {"UnpackedInteger"}
    assert {r["format"] for r in rows} == {f"{kind}w{WHOLE}b32"}
    entries = Plan.load(saved).quantize
    for row in rows:
        n, k = (96, 160) if row["name"] == "a" else (64, 96)
        assert row["bytes_after"] == entries[row["name"]].size_bytes(n, k) < 0.16 * 4 * n * k
    x = {"x": normal(16, 160, seed=7)}
    wanted, found = (Session(io.load(file))(x)["y"] for file in (net, first))
    error = np.linalg.norm(found - wanted) / np.linalg.norm(wanted)
    assert 0.01 < error < 0.2  # four bits
    code, printed = run(["apply", net, saved, "-o", again, *data], monkeypatch, capsys)
    assert code == 0, printed.err
    assert first.read_bytes() == again.read_bytes()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--format", "dgw8b32"], "dynamic or static activations"),
        (["--format", "dgw8b32", "--activations", "dynamic", "--method", "hqq"], "grained scales"),
        (["--format", "dgw8b32", "--activations", "dynamic", "--method", "brecq"], "not learned"),
        (["--format", "dgw9b32", "--activations", "dynamic"], "not of the form"),
    ],
)
def test_what_does_not_go_together_is_one_line(options, told, tmp_path, monkeypatch, capsys):
    io.save(small(), tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", x=normal(128, 160))
    out = tmp_path / "a.onnx"
    arguments = [tmp_path / "m.onnx", "-o", out, "--data", tmp_path / "x.npz"]
    code, printed = run(["quantize", *arguments, *options], monkeypatch, capsys)
    assert (code, len(printed.err.strip().splitlines())) == (2, 1)
    assert told in printed.err
    assert not out.exists()


def test_elsewhere_and_without_data_the_recipe_is_what_comes_nearest():
    elsewhere = lwqc.plan(small(), recipe="dgq", target="openvino")
    assert {e.weight.kind for e in elsewhere.quantize.values()} == {"int"}
    here = lwqc.plan(small(), recipe="dgq", target=NATIVE)
    assert {(e.weight.kind, e.method) for e in here.quantize.values()} == {("dg", "rtn")}
