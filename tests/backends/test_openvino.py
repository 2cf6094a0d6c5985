"""The OpenVINO target: its forms, its lint, and where OpenVINO is installed what that executes."""

import json

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import lwqc
from lwqc.backends import openvino
from lwqc.backends.cpu_rules import AVX2, VNNI
from lwqc.backends.openvino_lint import LACKING, lacks, lint
from lwqc.errors import InputError
from lwqc.graph.sites import find_sites
from lwqc.model import io
from lwqc.passes.encoded_weights import EncodedWeights
from lwqc.plans.plan import ActivationRange, Plan, SiteEntry, Source
from lwqc.runtime.openvino_session import OpenvinoSession, missing
from lwqc.runtime.session import Session, SessionSettings
from tests.build import model, normal

TARGET = openvino.OpenvinoTarget(VNNI)
RANGE = ActivationRange(low=-3, high=5)
installed = pytest.mark.skipif(bool(missing()), reason=missing() or "installed")


def network(opset=17):
    """An embedding tied to a product, a Gemm, and convolutions with a residual branch."""
    rows = [
        ("Gather", ["e", "i"], "r", {}),
        ("MatMul", ["r", "m"], "h", {}),
        ("Gemm", ["h", "g", "b"], "k", {"transB": 1}),
        ("Transpose", ["e"], "et", {"perm": [1, 0]}),
        ("MatMul", ["k", "et"], "logits", {}),
        ("Conv", ["x", "c1"], "a", {"pads": [1] * 4}),
        ("Relu", ["a"], "p", {}),
        ("Conv", ["p", "c2"], "q", {"pads": [1] * 4}),
        ("Add", ["q", "x"], "y", {}),
    ]
    weights = {
        "e": normal(96, 64),
        "m": normal(64, 64, seed=1, scale=0.2),
        "g": normal(64, 64, seed=2, scale=0.2),
        "b": normal(64, seed=3),
        "c1": normal(32, 32, 3, 3, seed=4, scale=0.1),
        "c2": normal(32, 32, 3, 3, seed=5, scale=0.1),
    }
    inputs = {"i": ["n"], "x": [1, 32, 8, 8]}
    types = {"i": ir.DataType.INT64.value}
    return model(rows, weights, inputs, ["logits", "y"], opset=opset, types=types)


FEEDS = {"i": np.array([0, 7, 95]), "x": normal(1, 32, 8, 8, seed=9)}
ENTRIES = {
    "4 in blocks": {"e": "w4b32h", "m": "w4b64ah", "g": "w4b32", "c1": "w4b32ah", "c2": "w8c"},
    "8 per channel": dict.fromkeys(("e", "m", "g", "c1", "c2"), "w8c"),
    "16": dict.fromkeys(("e", "m", "g", "c1", "c2"), "fp16"),
}


def lowered(built, entries):
    plan = Plan(
        source=Source(),
        target="openvino",
        quantize=entries,
        activations={v.name: RANGE for n in built.graph for v in n.inputs if v is not None},
    )
    done = TARGET.lower(built, plan, EncodedWeights(built, io.read_array))
    onnx.checker.check_model(ir.serde.serialize_model(done.model), full_check=True)
    assert lint(done.model) == []
    return done


def decoded(built, entries):
    """The float model with the numbers that codes stand for."""
    weights = EncodedWeights(built, io.read_array)
    for name, entry in entries.items():
        value = built.graph.initializers[name]
        array = weights.get(name, entry).decode()
        turned = name == "m"
        array = (array.T if turned else array).reshape(value.const_value.shape)
        value.const_value = ir.tensor(np.ascontiguousarray(array), name=name)
    return built


@pytest.mark.parametrize("formats", ENTRIES)
def test_stored_weights_stand_for_their_numbers(formats):
    entries = {n: SiteEntry(weight=f) for n, f in ENTRIES[formats].items()}
    done = lowered(network(), entries)
    expected = Session(decoded(network(), entries), SessionSettings(optimize=False))(FEEDS)
    found = Session(done.model, SessionSettings(optimize=False))(FEEDS)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=2e-4 * np.abs(value).max())
    if missing():
        return
    for name, value in OpenvinoSession(done.model)(FEEDS).items():
        # Ranges of activations found in each run: 8 bits of each of three products.
        assert np.sqrt(np.mean((value - expected[name]) ** 2)) < 0.02 * expected[name].std()


STATIC = {n: SiteEntry(weight="w8c", activation="static") for n in ("m", "g", "c1", "c2")}


def test_inputs_are_quantized_with_zero_points_and_outputs_are_not():
    done = lowered(network(), STATIC).model
    quantized = {n.inputs[0].name: n for n in done.graph if n.op_type == "QuantizeLinear"}
    assert quantized.keys() == {"r", "h", "x", "p"}
    zeros = {n.inputs[2].const_value.numpy().item() for n in quantized.values()}
    assert zeros == {round(3 / 8 * 255)}
    assert {n.inputs[2].dtype for n in quantized.values()} == {ir.DataType.UINT8}
    expected = Session(network())(FEEDS)["y"]
    found = Session(done, SessionSettings(optimize=False))(FEEDS)["y"]
    # As in the test of TensorRT, with a step half as wide.
    assert np.sqrt(np.mean((found - expected) ** 2)) < 0.05


@installed
@pytest.mark.parametrize(
    "entries", [STATIC, {"m": SiteEntry(weight="w4b32", activation="dynamic")}]
)
def test_products_run_in_few_bits(entries):
    done = lowered(network(), entries)
    assert TARGET.misplaced(done) == {}
    kinds = {"u8", "i8", "i4"}
    low = [k for k in OpenvinoSession(done.model).kernels() if k.precision in kinds]
    assert len([k for k in low if k.kind in ("FullyConnected", "Convolution")]) == len(entries)


@installed
def test_a_product_in_floats_is_told():
    done = lowered(network(), STATIC)
    for node in list(done.model.graph):
        if node.op_type == "DequantizeLinear" and node.inputs[0].producer() is not None:
            quantize = node.inputs[0].producer()
            node.outputs[0].replace_all_uses_with(quantize.inputs[0])
            done.model.graph.remove(node, safe=True)
    # Products still read the codes of their weights.
    assert TARGET.misplaced(done).keys() == {"c1", "c2"}


@installed
def test_a_session_is_used_like_others():
    built = network()
    session, other = OpenvinoSession(built), Session(built)
    assert (session.inputs, session.outputs, session.types) == (
        other.inputs,
        other.outputs,
        other.types,
    )
    assert session.seconds(FEEDS) > 0
    for name, value in session(FEEDS).items():
        np.testing.assert_allclose(value, other(FEEDS)[name], atol=1e-3)
    with pytest.raises(InputError, match=r"the run failed"):
        session({"i": FEEDS["i"], "x": FEEDS["x"][:, :3]})


@installed
@pytest.mark.parametrize("op", ["SequenceLength", "Det"])
def test_the_table_of_operators_is_that_of_the_installed_one(op):
    built = model([(op, ["x"], "y", {})], {}, {"x": [2, 2]}, ["y"])
    assert lacks("", op)
    with pytest.raises(InputError, match="No conversion rule found"):
        OpenvinoSession(built)


@pytest.mark.parametrize(
    ("site", "entry", "reason"),
    [
        ("m", SiteEntry(weight="w2b32"), "no codes of 2 bits"),
        ("m", SiteEntry(weight="w4c", activation="dynamic"), "go in blocks"),
        ("m", SiteEntry(weight="w4b128"), "rows of 64 are not a multiple"),
        ("m", SiteEntry(weight="nf4b32"), "no kernel in OpenVINO"),
        ("m", SiteEntry(weight="w4b32", activation="static"), "symmetric 8-bit"),
        ("c1", SiteEntry(weight="w8c", activation="dynamic"), "Conv of dynamic activations"),
        ("e", SiteEntry(weight="w8c", activation="static"), "no integer kernel"),
    ],
)
def test_what_it_does_not_take_is_told(site, entry, reason):
    found = {s.name: s for s in find_sites(network()).sites}[site]
    assert reason in TARGET.form(found, entry, 21)
    assert TARGET.refuses(TARGET.form(found, entry, 21))


def test_weights_have_7_bits_where_sums_saturate():
    site = next(s for s in find_sites(network()).sites if s.name == "c1")
    old = openvino.OpenvinoTarget(AVX2)
    assert old.integer_bits == 7
    assert "saturate" in old.form(site, STATIC["c1"], 21)
    seven = SiteEntry(weight="w7c", activation="static")
    assert old.form(site, seven, 21) == "QuantizeLinear"


def test_the_lint_names_what_is_not_read():
    ml = model([("SplitToSequence", ["x"], "s", {})], {}, {"x": [4]}, ["s"])
    assert lint(ml)[0].endswith("OpenVINO reads no SplitToSequence")
    own = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 17, "own" : 1]>
        g (float[2] x) => (float[2] y) { y = own.twice(x) }
        <domain: "own", opset_import: ["" : 17]> twice (a) => (b) { b = Add(a, a) }
    """)
    assert "no functions" in lint(ir.from_proto(own))[0]
    blocks = model(
        [("DequantizeLinear", ["q", "s"], "y", {"axis": 0, "block_size": 32})],
        {"q": np.zeros((40, 2), np.int8), "s": np.ones((2, 2), np.float32)},
        {"x": [1]},
        ["y"],
        opset=21,
    )
    assert "blocks of 32 do not divide 40" in lint(blocks)[0]
    scan = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 17]>
        g (float[3,2] x, float[2] i, float[2] k) => (float[2] l, float[3,2] y) {
          w = Relu(k)
          l, y = Scan<num_scan_inputs = 1, body = b (float[2] s, float[2] e)
            => (float[2] t, float[2] o) { t = Add(s, e)  o = Mul(t, w) }>(i, x)
        }
    """)
    assert "nothing that is computed outside: w" in lint(ir.from_proto(scan))[0]
    assert lacks("com.microsoft", "MatMulBnb4")
    assert not lacks("com.microsoft", "MatMulNBits")
    assert not LACKING & {"Conv", "Attention"}


@pytest.mark.parametrize("exact", [True, False])
def test_from_python_with_options_beside_the_file(tmp_path, exact):
    activations = "none" if exact else "dynamic"
    done = lwqc.quantize(network(21), bits=4, activations=activations, target="openvino")
    report = done.save(tmp_path / "o.onnx")
    assert report.target == "openvino"
    assert report.unmeasured == missing()
    options = json.loads((tmp_path / "o.onnx.options.json").read_text())
    assert options["provider"] == "openvino"
    wanted = {"INFERENCE_PRECISION_HINT": "f32"}
    assert options["options"] == wanted | (
        {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"} if exact else {}
    )


def test_without_it_a_reference_stands_in(tmp_path, monkeypatch, run):
    monkeypatch.setattr(openvino, "missing", lambda: "OpenVINO is not installed (for this test)")
    onnx.save(ir.to_proto(network()), tmp_path / "m.onnx")
    file, out = tmp_path / "m.onnx", tmp_path / "o.onnx"
    code, shown, _ = run("quantize", file, "-o", out, "--bits", "8", "--target", "openvino")
    assert code == 0
    assert "not installed (for this test)" in " ".join(shown.split())
    code, _, error = run("bench", file, out, "--target", "openvino")
    assert code == 2
    assert error.strip() == "lwqc: target openvino: OpenVINO is not installed (for this test)"


@installed
def test_bench_runs_in_it(tmp_path, run):
    onnx.save(ir.to_proto(network()), tmp_path / "m.onnx")
    code, shown, error = run(
        "bench", tmp_path / "m.onnx", "--target", "openvino", "--seconds", "0.05"
    )
    assert code == 0, error
    assert "1.00x" in shown
