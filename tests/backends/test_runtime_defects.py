"""Defects of onnxruntime 1.31.1 on the CPU: each is still there, and our lowering avoids it.

When a test named `test_runtime_...` fails, the installed runtime has fixed the defect: the
workaround that the message names can go.
"""

from __future__ import annotations

import platform

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from lwqc.backends.cpu import CpuTarget
from lwqc.errors import LwqcError
from lwqc.graph.sites import find_sites
from lwqc.model import io
from lwqc.passes.encoded_weights import EncodedWeights
from lwqc.plans.plan import ActivationRange, Plan, SiteEntry, Source
from lwqc.quant.codebook import LEVELS
from lwqc.quant.formats import WeightFormat
from lwqc.runtime.session import VERSION, Session, SessionSettings, optimized_graph
from tests.build import model, normal
from tests.processor import INTEGER, LARGEST

x86 = pytest.mark.skipif(
    platform.machine() not in {"x86_64", "AMD64"}, reason="the s8 to u8 rewrite is that of x86"
)
PLAIN = SessionSettings(optimize=False, threads=1)
FAST = SessionSettings(threads=1, entries={"session.qdq_matmulnbits_accuracy_level": "0"})
STEP, WEIGHT_STEP = np.float32(0.05), np.float32(0.01)


def fixed(workaround: str) -> str:
    return f"fixed in this runtime ({VERSION}): the workaround in {workaround} can go"


def failure(action):
    """What an action says when it fails, or nothing."""
    try:
        action()
    except LwqcError as error:
        return str(error)
    return ""


def graph(rows, weights, inputs, output, opset):
    """A model without our shape inference, which does not know every type used here."""
    stored = [
        value
        if isinstance(value, TensorProto)
        else numpy_helper.from_array(np.asarray(value), name)
        for name, value in weights.items()
    ]
    proto = helper.make_graph(
        [helper.make_node(op, used, [out], **attributes) for op, used, out, attributes in rows],
        "defect",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        stored,
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    built = helper.make_model(proto, opset_imports=opsets, ir_version=11 if opset >= 25 else 10)
    return ir.serde.deserialize_model(built)


def qdq(name, scale="s", zero="z"):
    """Rows that put a QuantizeLinear/DequantizeLinear pair on a tensor."""
    return [
        ("QuantizeLinear", [name, scale, zero], f"{name}_q", {}),
        ("DequantizeLinear", [f"{name}_q", scale, zero], f"{name}_d", {}),
    ]


def lower(built, entries, ranges=None):
    plan = Plan(
        source=Source(),
        quantize=entries,
        activations={n: ActivationRange(low=a, high=b) for n, (a, b) in (ranges or {}).items()},
    )
    return CpuTarget().lower(built, plan, EncodedWeights(built, io.read_array))


def executed(built):
    return [node.op_type for node in optimized_graph(built).node]


def cosine(a, b):
    return float((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))


# 1. From opset 21 on, s8 pairs in front of a Transpose, Reshape or Unsqueeze do not load.


def moved(op, opset):
    rows = [*qdq("x"), (op, ["x_d"] if op == "Transpose" else ["x_d", "to"], "y", {})]
    weights = {"s": STEP, "z": np.int8(0)}
    if op != "Transpose":
        weights["to"] = np.array([4, 4] if op == "Reshape" else [0])
    return graph(rows, weights, {"x": [2, 8]}, "y", opset)


@x86
@pytest.mark.parametrize("op", ["Transpose", "Reshape", "Unsqueeze"])
def test_runtime_does_not_load_signed_pairs_before_a_move(op):
    Session(moved(op, 20))
    message = failure(lambda: Session(moved(op, 21)))
    assert message, fixed("passes/insert_qdq.py (activations are uint8)")
    assert "INT8 does not match y_zero_point type UINT8" in message


def conv_then(op, constants, opset=21):
    rows = [("Conv", ["x", "w"], "c", {}), ("Relu", ["c"], "r", {})]
    rows += [(op, ["r", *constants], "t", {}), ("Conv", ["t", "v"], "y2", {})]
    rows += [("Relu", ["y2"], "y", {})]
    weights = {"w": normal(8, 8, 1, 1), "v": normal(8, 8, 1, 1, seed=1), **constants}
    return model(rows, weights, {"x": [1, 8, 8, 8]}, ["y"], opset=opset)


@pytest.mark.parametrize(
    ("op", "constants"), [("Transpose", {}), ("Reshape", {"to": np.array([1, 8, 8, 8])})]
)
def test_ours_loads_with_a_move_between_convolutions(op, constants):
    built = conv_then(op, constants)
    entry = SiteEntry(weight=INTEGER, activation="static")
    ranges = {"x": (-4, 4), "c": (-12, 12), "r": (0, 12), "t": (0, 12), "y2": (0, 30), "y": (0, 30)}
    lowered = lower(built, {"w": entry, "v": entry}, ranges).model
    assert "QLinearConv" in executed(lowered)
    feeds = {"x": normal(1, 8, 8, 8, seed=2)}
    assert cosine(Session(lowered)(feeds)["y"], Session(built)(feeds)["y"]) > 0.995


# 2. FP8 pairs around a MatMul are fused into an operator that has no FP8 kernel.


def test_runtime_does_not_load_fp8_pairs_around_a_matmul():
    zero = helper.make_tensor("z", TensorProto.FLOAT8E4M3FN, [], [0.0])
    rows = [*qdq("x"), *qdq("w"), ("MatMul", ["x_d", "w_d"], "m", {}), *qdq("m")]
    built = graph(rows, {"s": STEP, "z": zero, "w": normal(8, 8)}, {"x": [2, 8]}, "m_d", 19)
    Session(built, PLAIN)
    message = failure(lambda: Session(built))
    assert message, fixed("backends/cpu.py (FP8 is refused)")
    assert "float8e4m3fn" in message


def test_ours_refuses_fp8_on_the_cpu():
    net = model([("MatMul", ["x", "w"], "y", {})], {"w": normal(64, 64)}, {"x": [2, 64]}, ["y"])
    (site,) = find_sites(net).sites
    for activation in ("none", "static"):
        entry = SiteEntry(weight=WeightFormat.parse("fp8c"), activation=activation)
        assert CpuTarget().refuses(CpuTarget().form(site, entry, 20))


# 3. A 2-bit DequantizeLinear fused with a MatMul is wrong where N is not a multiple of 4.


@pytest.mark.parametrize("n", [5, 6, 7, 8])
def test_runtime_fuses_two_bit_weights_wrongly(n):
    rng = np.random.default_rng(0)
    codes, scale = rng.integers(-2, 2, (32, n)), rng.random((2, n), np.float32)
    weight = helper.make_tensor("w", TensorProto.INT2, [32, n], codes.flatten().tolist())
    rows = [
        ("DequantizeLinear", ["w", "s"], "d", {"axis": 0, "block_size": 16}),
        ("MatMul", ["x", "d"], "y", {}),
    ]
    built = graph(rows, {"w": weight, "s": scale}, {"x": ["m", 32]}, "y", 25)
    feeds = {"x": normal(3, 32)}
    expected = feeds["x"] @ (codes * np.repeat(scale, 16, axis=0))
    np.testing.assert_allclose(Session(built, PLAIN)(feeds)["y"], expected, atol=1e-4)
    error = np.abs(Session(built, FAST)(feeds)["y"] - expected).max()
    if n % 4 == 0:
        assert error <= 1e-4
    else:
        assert error > 0.1, fixed("passes/block_quantize.py (MatMulNBits is emitted directly)")


@pytest.mark.parametrize("n", [5, 6, 7, 8])
def test_ours_is_right_in_two_bits(n):
    built = model([("MatMul", ["x", "w"], "y", {})], {"w": normal(32, n)}, {"x": ["m", 32]}, ["y"])
    entry = SiteEntry(weight="w2b16")
    lowered = lower(built, {"w": entry}).model
    assert "DequantizeLinear" not in {node.op_type for node in lowered.graph}
    feeds = {"x": normal(3, 32)}
    decoded = EncodedWeights(built, io.read_array).get("w", entry).decode()
    np.testing.assert_allclose(Session(lowered)(feeds)["y"], feeds["x"] @ decoded.T, atol=1e-4)


# 4. A Gemm whose int32 bias has a scale other than x_scale * w_scale is silently wrong.


def quantized_gemm(bias_step):
    rng = np.random.default_rng(0)
    weights = {
        "s": STEP, "z": np.uint8(128), "ws": WEIGHT_STEP, "wz": np.int8(0), "bs": bias_step,
        "w": rng.integers(-LARGEST, LARGEST + 1, (16, 8)).astype(np.int8),
        "b": rng.integers(-1000, 1000, 8).astype(np.int32),
    }  # fmt: skip
    rows = [
        *qdq("x"),
        ("DequantizeLinear", ["w", "ws", "wz"], "w_d", {}),
        ("DequantizeLinear", ["b", "bs"], "b_d", {}),
        ("Gemm", ["x_d", "w_d", "b_d"], "m", {}),
        *qdq("m"),
    ]
    return graph(rows, weights, {"x": ["m", 16]}, "m_d", 17)


def test_runtime_ignores_the_scale_of_a_gemm_bias():
    feeds = {"x": normal(3, 16)}
    differences = [
        np.abs(Session(built)(feeds)["m_d"] - Session(built, PLAIN)(feeds)["m_d"]).max()
        for built in (quantized_gemm(STEP * WEIGHT_STEP), quantized_gemm(np.float32(0.003)))
    ]
    assert differences[0] <= STEP * 1.01
    assert differences[1] > 1, fixed("passes/integer_matmul.py (a Gemm's bias stays float)")


def test_ours_keeps_the_bias_of_a_gemm():
    weights = {"w": normal(16, 8), "b": 100 * normal(8, seed=1)}
    built = model([("Gemm", ["x", "w", "b"], "y", {})], weights, {"x": ["m", 16]}, ["y"])
    entry = SiteEntry(weight=INTEGER, activation="static")
    lowered = lower(built, {"w": entry}, {"x": (-4, 4)}).model
    feeds = {"x": np.clip(normal(3, 16), -4, 4)}
    found, expected = Session(lowered)(feeds)["y"], Session(built)(feeds)["y"]
    assert np.abs(found - expected).max() < 0.5  # of a bias of 100


# 5. A MatMul with one weight scale per input channel loads and fails when it runs.


@pytest.mark.parametrize("output_pair", [False, True])
def test_runtime_fails_on_scales_along_k(output_pair):
    rng = np.random.default_rng(0)
    weights = {
        "s": STEP, "z": np.uint8(128),
        "ws": rng.random(16, np.float32), "wz": np.zeros(16, np.int8),
        "w": rng.integers(-127, 128, (16, 8)).astype(np.int8),
    }  # fmt: skip
    rows = [
        *qdq("x"),
        ("DequantizeLinear", ["w", "ws", "wz"], "w_d", {"axis": 0}),
        ("MatMul", ["x_d", "w_d"], "m", {}),
        *(qdq("m") if output_pair else []),
    ]
    output = "m_d" if output_pair else "m"
    built = graph(rows, weights, {"x": ["m", 16]}, output, 17)
    feeds = {"x": normal(3, 16)}
    Session(built, PLAIN)(feeds)
    session = Session(built)
    message = failure(lambda: session(feeds))
    assert message, fixed("passes/integer_matmul.py (scales run along N)")
    assert "MatMul" in message


@pytest.mark.parametrize("activation", ["static", "dynamic"])
@pytest.mark.parametrize("op", ["MatMul", "Gemm"])
def test_ours_has_scales_along_n(op, activation):
    built = model([(op, ["x", "w"], "y", {})], {"w": normal(16, 8)}, {"x": ["m", 16]}, ["y"])
    lowered = lower(built, {"w": SiteEntry(weight=INTEGER, activation=activation)}, {"x": (-4, 4)})
    assert list(lowered.model.graph.initializers["w_scale"].shape) == [8]
    feeds = {"x": np.clip(normal(3, 16), -4, 4)}
    assert cosine(Session(lowered.model)(feeds)["y"], Session(built)(feeds)["y"]) > 0.999


# 6. One s8 tensor that a Conv and an Add read: neither is fused.


def residual(signed, shared):
    """Conv(a) + b, all quantized; b is a, or another input."""
    zero = np.int8(0) if signed else np.uint8(128)
    rng = np.random.default_rng(0)
    weights = {
        "s": STEP, "z": zero, "ws": WEIGHT_STEP, "wz": np.int8(0),
        "w": rng.integers(-127, 128, (8, 8, 1, 1)).astype(np.int8),
    }  # fmt: skip
    rows = [
        *qdq("a"),
        *([] if shared else qdq("b")),
        ("DequantizeLinear", ["w", "ws", "wz"], "w_d", {}),
        ("Conv", ["a_d", "w_d"], "c", {}),
        *qdq("c"),
        ("Add", ["c_d", "a_d" if shared else "b_d"], "y", {}),
        *qdq("y"),
    ]
    inputs = {name: [1, 8, 4, 4] for name in (["a"] if shared else ["a", "b"])}
    return graph(rows, weights, inputs, "y_d", 17)


@x86
def test_runtime_does_not_fuse_around_a_shared_signed_tensor():
    for signed, shared in ((False, False), (False, True), (True, False)):
        assert {"QLinearConv", "QLinearAdd"} <= set(executed(residual(signed, shared)))
    operators = set(executed(residual(signed=True, shared=True)))
    message = fixed("passes/insert_qdq.py (activations are uint8)")
    assert not operators & {"QLinearConv", "QLinearAdd"}, message


def test_ours_fuses_around_a_shared_tensor():
    built = model(
        [
            ("Conv", ["x", "w"], "a", {}),
            ("Conv", ["a", "v"], "c", {}),
            ("Add", ["c", "a"], "s", {}),
            ("Conv", ["s", "u"], "z", {}),
            ("Erf", ["z"], "y", {}),
        ],
        {n: normal(8, 8, 1, 1, seed=i) for i, n in enumerate("wvu")},
        {"x": [1, 8, 4, 4]},
        ["y"],
    )
    entry = SiteEntry(weight=INTEGER, activation="static")
    ranges = {"x": (-4, 4), "a": (-12, 12), "c": (-30, 30), "s": (-30, 30), "z": (-90, 90)}
    lowered = lower(built, dict.fromkeys("wvu", entry), ranges).model
    operators = executed(lowered)
    assert operators.count("QLinearConv") >= 2
    assert "QLinearAdd" in operators


# 7. MatMulBnb4 is wrong, at times NaN, when its weight is not transposed.


def bnb4(transposed):
    codes = np.random.default_rng(0).integers(0, 16, 32 * 8).astype(np.uint8)
    weights = {"w": codes[0::2] << 4 | codes[1::2], "a": np.ones(16, np.float32)}
    attributes = {"K": 32, "N": 8, "block_size": 16, "quant_type": 1, "transB": int(transposed)}
    rows = [("MatMulBnb4", ["x", "w", "a"], "y", {"domain": "com.microsoft", **attributes})]
    width = 32 if transposed else 8
    feeds = {"x": normal(3, width)}
    found = Session(graph(rows, weights, {"x": ["m", width]}, "y", 20))(feeds)["y"]
    weight = LEVELS["nf4"][codes].reshape(8, 32)
    return found, feeds["x"] @ (weight.T if transposed else weight)


def test_runtime_multiplies_wrongly_by_float4_weights_that_are_not_transposed():
    np.testing.assert_allclose(*bnb4(transposed=True), atol=1e-5)
    found, expected = bnb4(transposed=False)
    wrong = not np.allclose(found, expected, atol=1e-2)
    assert wrong, fixed("passes/bnb4.py (transB is always 1)")


def test_ours_has_float4_weights_transposed():
    built = model([("MatMul", ["x", "w"], "y", {})], {"w": normal(32, 8)}, {"x": ["m", 32]}, ["y"])
    entry = SiteEntry(weight="nf4b16")
    lowered = lower(built, {"w": entry}).model
    (node,) = [n for n in lowered.graph if n.op_type == "MatMulBnb4"]
    assert "transB" not in node.attributes  # 1 is its default
    feeds = {"x": normal(3, 32)}
    decoded = EncodedWeights(built, io.read_array).get("w", entry).decode()
    np.testing.assert_allclose(Session(lowered)(feeds)["y"], feeds["x"] @ decoded.T, atol=1e-4)
