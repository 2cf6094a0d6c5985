"""Blame: the culprit is first, the numbers are what numpy says, and nothing is compared in vain."""

from __future__ import annotations

import json

import numpy as np
import onnx_ir as ir
import pytest

from lwqc import cli
from lwqc.compile.blame import Comparison
from lwqc.errors import InputError
from lwqc.model import io
from lwqc.runtime.session import Session, statistics_session
from tests.build import model, normal

WIDTH = 32


def rounded(array, bits):
    """Round to a symmetric grid with one scale per column."""
    scale = np.abs(array).max(0, keepdims=True) / (2 ** (bits - 1) - 1)
    return (np.round(array / scale) * scale).astype(np.float32)


def residual_net(layers=4):
    """x + Relu(x W + b) V, with a normalisation between blocks, then a projection."""
    rows, weights, x = [], {}, "x"
    for i in range(layers):
        rows += [
            ("LayerNormalization", [x, "gain"], f"n{i}", {}),
            ("MatMul", [f"n{i}", f"w{i}"], f"a{i}", {}),
            ("Add", [f"a{i}", f"b{i}"], f"h{i}", {}),
            ("Relu", [f"h{i}"], f"r{i}", {}),
            ("MatMul", [f"r{i}", f"v{i}"], f"c{i}", {}),
            ("Add", [x, f"c{i}"], f"x{i}", {}),
        ]
        weights[f"w{i}"] = normal(WIDTH, 2 * WIDTH, seed=3 * i, scale=WIDTH**-0.5)
        weights[f"v{i}"] = normal(2 * WIDTH, WIDTH, seed=3 * i + 1, scale=WIDTH**-0.5)
        weights[f"b{i}"] = normal(2 * WIDTH, seed=3 * i + 2, scale=0.1)
        x = f"x{i}"
    rows.append(("MatMul", [x, "out"], "y", {}))
    weights |= {"gain": np.ones(WIDTH, np.float32), "out": normal(WIDTH, 10, seed=99, scale=0.2)}
    return model(rows, weights, {"x": ["batch", "seq", WIDTH]}, ["y"])


def with_weights(original, **changes):
    """A copy with some weights replaced."""
    copy = original.clone()
    for name, array in changes.items():
        copy.graph.initializers[name].const_value = ir.tensor(array, name=name)
        copy.graph.initializers[name].shape = ir.Shape(array.shape)
    return copy


def weight(original, name):
    return original.graph.initializers[name].const_value.numpy()


def ragged():
    shapes = [(2, 5), (1, 9), (3, 2)]
    return [{"x": normal(n, s, WIDTH, seed=40 + s)} for n, s in shapes]


def compare(original, compressed, data=None):
    return Comparison(original, compressed, data or ragged(), statistics_session)


def output_error(original, compressed, data):
    """Squared error of the outputs."""
    a, b = Session(original), Session(compressed)
    return sum(float(((a(f)["y"] - b(f)["y"]).astype(np.float64) ** 2).sum()) for f in data)


MATRICES = [f"{kind}{i}" for i in range(4) for kind in "wv"]


@pytest.mark.parametrize("culprit", MATRICES)
def test_the_layer_with_2_bits_among_8_is_first(culprit):
    original = residual_net()
    bits = {name: 2 if name == culprit else 8 for name in MATRICES}
    changes = {n: rounded(weight(original, n), b) for n, b in bits.items()}
    found = compare(original, with_weights(original, **changes)).blame()
    assert len(found.suspects) == len(MATRICES)
    assert found.suspects[0].weights == (culprit,)
    assert found.suspects[0].share > 0.8
    assert sum(s.share for s in found.suspects) == pytest.approx(1)


@pytest.mark.parametrize("layer", range(4))
def test_a_corrupted_bias_is_first(layer):
    original = residual_net()
    changes = {n: rounded(weight(original, n), 6) for n in MATRICES}
    bad = weight(original, f"b{layer}").copy()
    bad[3] = 8.0
    found = compare(original, with_weights(original, **changes, **{f"b{layer}": bad})).blame()
    assert (found.suspects[0].tensor, found.suspects[0].weights) == (f"h{layer}", (f"b{layer}",))
    assert found.suspects[0].share > 0.5


def test_numbers_are_those_of_numpy():
    original = model(
        [("MatMul", ["x", "w"], "h", {}), ("MatMul", ["h", "v"], "y", {})],
        {"w": normal(6, 8, seed=1), "v": normal(8, 4, seed=2)},
        {"x": ["n", 6]},
        ["y"],
    )
    w, v = weight(original, "w"), weight(original, "v")
    w2, v2 = rounded(w, 4), rounded(v, 3)
    data = [{"x": normal(n, 6, seed=n)} for n in (3, 7)]
    x = np.concatenate([f["x"] for f in data])
    found = compare(original, with_weights(original, w=w2, v=v2), data).blame()
    by_name = {s.tensor: s for s in found.suspects}

    def rms(a):
        return np.sqrt((a.astype(np.float64) ** 2).mean())

    y, y2, inherited = x @ w @ v, x @ w2 @ v2, x @ w2 @ v
    assert by_name["h"].relative_error == pytest.approx(rms(x @ w2 - x @ w) / rms(x @ w), rel=1e-4)
    assert by_name["h"].introduced == pytest.approx(by_name["h"].relative_error)
    assert by_name["y"].relative_error == pytest.approx(rms(y2 - y) / rms(y), rel=1e-4)
    assert by_name["y"].introduced == pytest.approx(rms(y2 - inherited) / rms(y), rel=1e-4)
    share = 1 - (rms(inherited - y) / rms(y2 - y)) ** 2
    assert by_name["y"].share == pytest.approx(share, rel=1e-3)
    assert by_name["h"].share == pytest.approx(1 - share, rel=1e-3)
    assert found.outputs == {"y": by_name["y"].relative_error}


def test_an_operator_with_two_inputs_passes_blame_to_the_wrong_one():
    original = model(
        [
            ("MatMul", ["x", "w"], "q", {}),
            ("MatMul", ["x", "v"], "k", {}),
            ("Transpose", ["k"], "t", {"perm": [0, 2, 1]}),
            ("MatMul", ["q", "t"], "y", {}),
        ],
        {"w": normal(8, 8, seed=1), "v": normal(8, 8, seed=2)},
        {"x": ["n", "s", 8]},
        ["y"],
    )
    changes = {"w": rounded(weight(original, "w"), 7), "v": rounded(weight(original, "v"), 3)}
    data = [{"x": normal(2, s, 8, seed=s)} for s in (3, 6)]
    found = compare(original, with_weights(original, **changes), data).blame()
    assert [s.tensor for s in found.suspects] == ["k", "q"]
    assert found.suspects[0].share > 0.98


def test_repair_takes_the_blamed_error_away():
    original = residual_net()
    changes = {n: rounded(weight(original, n), 2 if n == "v1" else 6) for n in MATRICES}
    compressed, data = with_weights(original, **changes), ragged()
    comparison = compare(original, compressed)
    found = comparison.blame()
    before = output_error(original, compressed, data)
    gains = [
        1 - output_error(original, comparison.repaired(s.tensor), data) / before
        for s in found.suspects
    ]
    assert found.suspects[0].weights == ("v1",)
    assert gains[0] > 0.5
    assert gains[0] == max(gains)
    everything = with_weights(compressed, v1=weight(original, "v1"))
    exact = 1 - output_error(original, everything, data) / before
    assert gains[0] == pytest.approx(exact, abs=1e-4)


def test_identical_models_have_no_error_and_no_suspects():
    found = compare(residual_net(), residual_net()).blame()
    assert found.suspects == ()
    assert found.outputs == {"y": 0.0}
    assert found.is_exact


def test_several_passes_give_what_one_gives():
    original = residual_net()
    compressed = with_weights(original, **{n: rounded(weight(original, n), 4) for n in MATRICES})
    one = compare(original, compressed).blame()
    many = compare(original, compressed).blame(pass_bytes=4000)
    assert one.passes == 1
    assert many.passes > 5
    for a, b in zip(one.suspects, many.suspects, strict=True):
        assert (a.tensor, a.share) == (b.tensor, pytest.approx(b.share, rel=1e-3))


def test_pruned_channels_are_blamed_where_shapes_meet_again():
    original = residual_net()
    keep = np.arange(0, 2 * WIDTH, 2)
    changes = {
        "w2": weight(original, "w2")[:, keep],
        "b2": weight(original, "b2")[keep],
        "v2": weight(original, "v2")[keep],
    }
    compressed = with_weights(original, **changes)
    for node in compressed.graph:
        for value in node.outputs:
            value.shape = None
    found = compare(original, compressed).blame()
    assert [(s.tensor, s.share) for s in found.suspects] == [("c2", pytest.approx(1))]
    assert found.suspects[0].operator == "MatMul and 3 before it"
    assert set(found.suspects[0].weights) == {"w2", "b2", "v2"}
    assert {name for name, _ in found.excluded} == {"a2", "h2", "r2"}
    assert "[2, 5, 32]" in dict(found.excluded)["a2"]


def test_a_tensor_that_was_scaled_is_no_culprit():
    """Scale migration into a normalisation: the tensor is off, the next weights take it back."""
    original = residual_net(1)
    scale = np.linspace(0.5, 4, WIDTH, dtype=np.float32)
    compressed = with_weights(
        original,
        gain=scale,
        w0=weight(original, "w0") / scale[:, None],
        v0=rounded(weight(original, "v0"), 4),
    )
    found = compare(original, compressed).blame()
    assert [name for name, _ in found.excluded] == ["n0"]
    assert found.suspects[0].weights == ("v0",)
    assert found.suspects[0].share > 0.99
    assert found.passes == 2


def test_a_rotated_residual_stream_is_no_culprit():
    rows = [
        ("MatMul", ["x", "e"], "x0", {}),
        ("MatMul", ["x0", "w"], "h", {}),
        ("Relu", ["h"], "r", {}),
        ("MatMul", ["r", "v"], "c", {}),
        ("Add", ["x0", "c"], "x1", {}),
        ("MatMul", ["x1", "o"], "y", {}),
    ]
    draw = {n: normal(WIDTH, WIDTH, seed=i, scale=WIDTH**-0.5) for i, n in enumerate("ewvo")}
    original = model(rows, draw, {"x": ["b", "s", WIDTH]}, ["y"])
    q = np.linalg.qr(normal(WIDTH, WIDTH, seed=9))[0].astype(np.float32)
    rotated = {"e": draw["e"] @ q, "w": q.T @ rounded(draw["w"], 4), "v": draw["v"] @ q,
               "o": q.T @ draw["o"]}  # fmt: skip
    found = compare(original, with_weights(original, **rotated)).blame()
    assert {name for name, _ in found.excluded} == {"x0", "c", "x1"}
    assert found.suspects[0].tensor == "h"
    assert found.suspects[0].share > 0.99


def test_fused_nodes_are_compared_as_a_whole():
    original = model(
        [("MatMul", ["x", "w"], "a", {}), ("Add", ["a", "b"], "y", {})],
        {"w": normal(8, 4), "b": normal(4, seed=1)},
        {"x": ["n", 8]},
        ["y"],
    )
    fused = model(
        [("Gemm", ["x", "w", "b"], "y", {})],
        {"w": rounded(normal(8, 4), 4), "b": normal(4, seed=1)},
        {"x": ["n", 8]},
        ["y"],
    )
    comparison = compare(original, fused, [{"x": normal(5, 8)}])
    found = comparison.blame()
    assert [(s.tensor, s.operator) for s in found.suspects] == [
        ("y", "Add and 1 before it -> Gemm")
    ]
    assert output_error(original, comparison.repaired("y"), [{"x": normal(5, 8)}]) < 1e-9


def test_nan_is_blamed_where_it_arises():
    original = residual_net()
    bad = weight(original, "w1").copy()
    bad[0, 0] = np.nan
    changes = {"w1": bad, "w3": rounded(weight(original, "w3"), 2)}
    found = compare(original, with_weights(original, **changes)).blame()
    assert (found.suspects[0].tensor, found.suspects[0].share) == ("a1", 1.0)


def test_masks_of_minus_infinity_are_no_error():
    original = model(
        [
            ("MatMul", ["x", "w"], "s", {}),
            ("Where", ["keep", "s", "low"], "m", {}),
            ("Softmax", ["m"], "y", {"axis": -1}),
        ],
        {
            "w": normal(6, 6),
            "keep": np.arange(6) < 4,
            "low": np.array(-np.inf, np.float32),
        },
        {"x": ["n", 6]},
        ["y"],
    )
    compressed = with_weights(original, w=rounded(normal(6, 6), 4))
    found = compare(original, compressed, [{"x": normal(3, 6)}]).blame()
    assert [(s.tensor, s.share) for s in found.suspects] == [("s", pytest.approx(1))]
    assert 0 < found.outputs["y"] < 1


BRANCH = """
<ir_version: 9, opset_import: ["" : 18]>
net (float[n, 4] x, bool flag) => (float[n, 4] y) {
  h = Relu(x)
  z = If (flag) <
    then_branch = yes () => (t) { %s },
    else_branch = no () => (e) { e = Identity(h) }
  >
  y = Neg(z)
}
"""


def test_inside_an_if_nothing_is_separated():
    original = ir.from_onnx_text(BRANCH % "t = Abs(h)")
    compressed = ir.from_onnx_text(BRANCH % "t = Neg(h)")
    comparison = compare(original, compressed, [{"x": normal(3, 4), "flag": np.array(True)}])
    found = comparison.blame()
    (suspect,) = found.suspects
    assert (suspect.tensor, suspect.share, suspect.separable) == ("z", 1.0, False)
    with pytest.raises(InputError, match="If, Loop or Scan"):
        comparison.repaired("z")


def test_models_that_do_not_belong_together_are_refused():
    original = residual_net(1)
    renamed = original.clone()
    renamed.graph.outputs[0].name = "z"
    with pytest.raises(InputError, match="no output y"):
        compare(original, renamed)
    newer = original.clone()
    newer.opset_imports[""] = 21
    with pytest.raises(InputError, match="opsets 20 and 21"):
        compare(original, newer)
    wide = with_weights(original, out=normal(WIDTH, 11))
    wide.graph.outputs[0].shape = None
    with pytest.raises(InputError, match=r"output y: its shape is \[2, 5, 11\]"):
        compare(original, wide)


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Call `lwqc verify`; returns (exit code, stdout, stderr)."""
    original = residual_net()
    changes = {n: rounded(weight(original, n), 2 if n == "w1" else 8) for n in MATRICES}
    io.save(original, tmp_path / "a.onnx")
    io.save(with_weights(original, **changes), tmp_path / "b.onnx")

    def call(*arguments, a="a.onnx", b="b.onnx"):
        files = [str(tmp_path / a), str(tmp_path / b)]
        monkeypatch.setattr("sys.argv", ["lwqc", "verify", *files, *arguments])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        captured = capsys.readouterr()
        return caught.value.code, captured.out, captured.err

    return call


def test_command_ranks_and_checks(run):
    code, text, err = run("--data", "random:3", "--blame-check", "2", "--json")
    assert code == 0, err
    result = json.loads(text)
    suspects = result["blame"]["suspects"]
    assert suspects[0]["weights"] == ["w1"]
    assert suspects[0]["drop_without"] < 0.1 * result["drop"]
    assert suspects[1]["drop_without"] > 0.9 * result["drop"]
    assert suspects[2]["drop_without"] is None
    assert result["blame"]["not_comparable"] == []


def test_command_prints_a_table(run):
    code, text, _ = run("--data", "random:3", "--blame")
    assert code == 0
    assert "Blame for the output error" in text
    assert "random data" in text
    assert "no error" in run("--blame", b="a.onnx")[1]


def test_command_refuses_bad_use_in_one_line(run):
    code, _, err = run("--blame-check", "-1")
    assert code == 2
    assert len(err.strip().splitlines()) == 1
