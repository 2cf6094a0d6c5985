"""Quantized files, of lwqc and of other tools, are lowered for every target."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from onnxruntime.transformers.float16 import convert_float_to_float16

import lwqc
from lwqc.compile.execute import execute
from lwqc.compile.steps.restored import restored
from lwqc.decide.compress import open_version
from lwqc.decide.float_plan import with_floats
from lwqc.decide.lower import lower_plan
from lwqc.decide.planning import calibrate, uniform
from lwqc.errors import InputError
from lwqc.graph.sites import MIN_WEIGHTS
from lwqc.model import io
from lwqc.passes.restore_floats import RestoreFloats
from lwqc.plans.goals import Goals
from lwqc.plans.plan import Restore
from lwqc.quant.formats import WeightFormat
from lwqc.quant.range_search import encode
from lwqc.quant.stored_codes import rescaled, with_positive_scales
from lwqc.runtime.session import Session, SessionSettings
from tests.build import model, normal
from tests.processor import NATIVE

TARGETS = ("cpu-vnni", "cpu-avx2", "cpu-arm", "cuda", "tensorrt")
CPUS = ("cpu-vnni", "cpu-avx2", "cpu-arm")
WIDE = 128


def positive(n: int, seed: int) -> np.ndarray:
    return np.abs(normal(n, seed=seed)) + np.float32(0.3)


def mlp() -> ir.Model:
    rows = [
        ("MatMul", ["x", "w1"], "a", {}),
        ("Add", ["a", "b1"], "b", {}),
        ("Relu", ["b"], "c", {}),
        ("Gemm", ["c", "w2", "b2"], "d", {"transB": 1}),
        ("Tanh", ["d"], "e", {}),
        ("MatMul", ["e", "w3"], "y", {}),
    ]
    weights = {
        "w1": normal(WIDE, 2 * WIDE, scale=0.12),
        "b1": normal(2 * WIDE, seed=1, scale=0.3),
        "w2": normal(WIDE, 2 * WIDE, seed=2, scale=0.08),
        "b2": normal(WIDE, seed=3, scale=0.3),
        "w3": normal(WIDE, WIDE, seed=4, scale=0.1),
    }
    return model(rows, weights, {"x": ["batch", WIDE]}, ["y"], opset=17)


def convolutions() -> ir.Model:
    """BatchNormalization behind a convolution, with scales of both signs."""
    n = 64
    pads = {"pads": [1] * 4}
    rows = [
        ("Conv", ["x", "w1"], "a", pads),
        ("BatchNormalization", ["a", "s1", "o1", "m1", "v1"], "n1", {}),
        ("Relu", ["n1"], "r", {}),
        ("Conv", ["r", "w2", "b2"], "b", pads),
        ("BatchNormalization", ["b", "s2", "o2", "m2", "v2"], "n2", {}),
        ("Add", ["n2", "r"], "sum", {}),
        ("Relu", ["sum"], "rs", {}),
        ("GlobalAveragePool", ["rs"], "p", {}),
        ("Flatten", ["p"], "f", {}),
        ("Gemm", ["f", "fc", "fb"], "y", {}),
    ]
    weights = {
        "w1": normal(n, 16, 3, 3, scale=0.1),
        "w2": normal(n, n, 3, 3, seed=1, scale=0.05),
        "b2": normal(n, seed=2, scale=0.2),
        "fc": normal(n, n, seed=3, scale=0.2),
        "fb": normal(n, seed=4),
    }
    for i in (1, 2):
        weights |= {
            f"s{i}": positive(n, 10 + i) * np.where(np.arange(n) % 5, 1, -1).astype(np.float32),
            f"o{i}": normal(n, seed=20 + i, scale=0.3),
            f"m{i}": normal(n, seed=30 + i, scale=0.3),
            f"v{i}": positive(n, 40 + i),
        }
    return model(rows, weights, {"x": ["batch", 16, 6, 6]}, ["y"], opset=17)


def tied() -> ir.Model:
    """A decoder's ends: one matrix embeds tokens and, transposed, scores them."""
    rows = [
        ("Gather", ["table", "ids"], "h", {}),
        ("LayerNormalization", ["h", "g", "o"], "l", {"axis": -1}),
        ("MatMul", ["l", "w"], "u", {}),
        ("Add", ["h", "u"], "s", {}),
        ("Transpose", ["table"], "turned", {"perm": [1, 0]}),
        ("MatMul", ["s", "turned"], "logits", {}),
    ]
    weights = {
        "table": normal(3 * WIDE, WIDE),
        "g": np.ones(WIDE, np.float32),
        "o": normal(WIDE, seed=1, scale=0.1),
        "w": normal(WIDE, WIDE, seed=2, scale=0.08),
    }
    return model(
        rows, weights, {"ids": ["batch", "time"]}, ["logits"], opset=17,
        types={"ids": onnx.TensorProto.INT64},
    )  # fmt: skip


def attention() -> ir.Model:
    rows = []
    for c, perm in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
        rows += [
            ("MatMul", ["x", f"w{c}"], f"{c}0", {}),
            ("Reshape", [f"{c}0", "heads"], f"{c}1", {}),
            ("Transpose", [f"{c}1"], f"{c}2", {"perm": perm}),
        ]
    rows += [
        ("MatMul", ["q2", "k2"], "s", {}),
        ("Mul", ["s", "scale"], "ss", {}),
        ("Softmax", ["ss"], "p", {"axis": -1}),
        ("MatMul", ["p", "v2"], "o", {}),
        ("Transpose", ["o"], "ot", {"perm": [0, 2, 1, 3]}),
        ("Reshape", ["ot", "whole"], "om", {}),
        ("MatMul", ["om", "wo"], "oo", {}),
        ("Add", ["x", "oo"], "y", {}),
    ]
    weights = {f"w{c}": normal(WIDE, WIDE, seed=i, scale=0.09) for i, c in enumerate("qkvo")}
    weights |= {
        "heads": np.array([0, 0, 4, WIDE // 4]),
        "whole": np.array([0, 0, WIDE]),
        "scale": np.float32((WIDE // 4) ** -0.5),
    }
    return model(rows, weights, {"x": ["batch", "time", WIDE]}, ["y"], opset=17)


SOURCES = {"mlp": mlp, "convolutions": convolutions, "tied": tied, "attention": attention}


def feeds(source: str, seed: int = 0) -> dict[str, np.ndarray]:
    if source == "tied":
        return {"ids": np.random.default_rng(seed).integers(0, 3 * WIDE, (2, 7))}
    shape = {"mlp": (6, WIDE), "convolutions": (2, 16, 6, 6), "attention": (2, 9, WIDE)}[source]
    return {"x": normal(*shape, seed=100 + seed)}


class Reader(CalibrationDataReader):
    """A few feeds for onnxruntime's quantizer."""

    def __init__(self, source):
        self._feeds = iter([feeds(source, seed) for seed in range(4)])

    def get_next(self):
        return next(self._feeds, None)


def by_lwqc(target, bits, activations):
    def make(source, folder):
        data = [feeds(source, seed) for seed in range(4)]
        work = open_version(SOURCES[source](), data=data, target=target)
        plan = calibrate(work, uniform(work, bits, activations), "minmax")
        plan = with_floats(work, plan)
        return io.to_bytes(execute(work, Goals(), plan).model)

    return make


def by_tool(quantize):
    """quantize: (path of the float model, path to write, source)."""

    def make(source, folder):
        before, after = folder / "float.onnx", folder / "quantized.onnx"
        plain = onnx.load_from_string(io.to_bytes(SOURCES[source]()))
        del plain.graph.value_info[:]  # quantize_dynamic transposes weights and leaves theirs
        onnx.save(plain, before)
        quantize(before, after, source)
        return after.read_bytes()

    return make


def static(**options):
    defaults = {"weight_type": QuantType.QInt8, "activation_type": QuantType.QUInt8}
    return by_tool(lambda a, b, s: quantize_static(a, b, Reader(s), **{**defaults, **options}))


def nbits(before, after, source):
    quantizer = MatMulNBitsQuantizer(
        onnx.load(before), bits=4, block_size=32, is_symmetric=True, accuracy_level=4
    )
    quantizer.process()
    quantizer.model.save_model_to_file(str(after))


def halves(before, after, source):
    onnx.save(convert_float_to_float16(onnx.load(before)), after)


S8 = {"activation_type": QuantType.QInt8, "per_channel": True}
SYMMETRIC = {"extra_options": {"ActivationSymmetric": True, "WeightSymmetric": True}}
# Producer -> how it makes a file, targets that keep all of its codes. Codes of 8 bits that meet
# 8-bit activations cannot stay on processors without VNNI.
PRODUCERS = {
    "lwqc-w8": (by_lwqc("cpu-vnni", 8, "none"), (*CPUS, "cuda")),
    "lwqc-w4": (by_lwqc("cpu-vnni", 4, "none"), (*CPUS, "cuda")),
    "lwqc-static": (by_lwqc("cpu-vnni", 8, "static"), ("cpu-vnni", "cpu-arm", "cuda", "tensorrt")),
    "lwqc-avx2": (by_lwqc("cpu-avx2", 8, "static"), TARGETS),
    "lwqc-arm": (by_lwqc("cpu-arm", 8, "static"), ("cpu-vnni", "cpu-arm", "cuda", "tensorrt")),
    "lwqc-cuda": (by_lwqc("cuda", 4, "none"), (*CPUS, "cuda")),
    "lwqc-trt": (by_lwqc("tensorrt", 8, "static"), ("cpu-vnni", "cpu-arm", "cuda", "tensorrt")),
    "lwqc-trt4": (by_lwqc("tensorrt", 4, "none"), TARGETS),
    "ort-dynamic": (
        by_tool(lambda a, b, s: quantize_dynamic(a, b, weight_type=QuantType.QInt8)),
        ("cpu-vnni", "cpu-arm", "cuda"),
    ),
    "ort-u8s8": (static(), ("cpu-vnni", "cpu-arm", "cuda", "tensorrt")),
    "ort-s8s8": (static(**S8), ("cpu-vnni", "cpu-arm", "cuda", "tensorrt")),
    "ort-symmetric": (static(**S8, **SYMMETRIC), ("cpu-vnni", "cpu-arm", "cuda", "tensorrt")),
    "ort-reduced": (static(per_channel=True, reduce_range=True), TARGETS),
    "ort-operators": (
        static(quant_format=QuantFormat.QOperator, per_channel=True),
        ("cpu-vnni", "cpu-arm", "cuda", "tensorrt"),
    ),
    "ort-nbits": (by_tool(nbits), (*CPUS, "cuda")),
}
CASES = [
    *(("mlp", producer) for producer in PRODUCERS),
    *(
        ("convolutions", producer)
        for producer in (
            "lwqc-w8", "lwqc-static", "lwqc-avx2", "lwqc-trt", "ort-dynamic", "ort-symmetric",
            "ort-reduced", "ort-operators",
        )
    ),
    *(("tied", producer) for producer in ("lwqc-w8", "lwqc-w4", "lwqc-cuda", "ort-nbits")),
    *(("attention", producer) for producer in ("lwqc-static", "lwqc-trt", "ort-operators")),
]  # fmt: skip


@cache
def produced(source: str, producer: str, folder) -> bytes:
    return PRODUCERS[producer][0](source, folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("chains")


def codes_of(data: bytes) -> list[bytes]:
    """Codes of every weight around zero, in no order; their sign may go into the scale."""
    step = RestoreFloats()
    step(
        io.load(data) if not isinstance(data, bytes) else ir.from_proto(onnx.load_from_string(data))
    )
    return sorted(
        np.sort(np.abs(w.codes().astype(np.int16) - 2 ** (w.bits - 1)), axis=None).tobytes()
        for w in step.weights.values()
        if w.codes().size >= MIN_WEIGHTS
    )


def signature(data: bytes) -> list[tuple[object, ...]]:
    graph = onnx.load_from_string(data).graph
    return [
        (v.name, v.type.tensor_type.elem_type,
         *(d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim))
        for v in (*graph.input, *graph.output)
    ]  # fmt: skip


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def run(data: bytes, given):
    plain = SessionSettings(optimize=False)
    return next(iter(Session(data, plain)(given).values()))


def lowered(data: bytes, source: str, target: str):
    work = open_version(
        ir.from_proto(onnx.load_from_string(data)), data=[feeds(source, 7)], target=target
    )
    plan = lower_plan(work)
    return plan, io.to_bytes(execute(work, Goals(), plan).model)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("source", "producer"), CASES, ids=["-".join(c) for c in CASES])
def test_a_quantized_file_is_lowered_for_every_target(folder, source, producer, target):
    before = produced(source, producer, folder)
    plan, after = lowered(before, source, target)
    onnx.checker.check_model(onnx.load_from_string(after), full_check=True)
    given = feeds(source, 8)
    assert cosine(run(after, given), run(before, given)) > 0.99
    assert signature(after) == signature(before)
    kept = target in PRODUCERS[producer][1] and not (source == "tied" and target == "tensorrt")
    if kept:
        assert codes_of(after) == codes_of(before)
        assert len(after) <= 1.1 * len(before)
    else:
        assert plan.kept_float
        assert all(plan.kept_float.values())
    if target == "cpu-avx2":
        for name, entry in plan.quantize.items():
            integers = entry.activation != "none" and entry.weight.block is None
            assert not integers or entry.weight.bits == 7, name


def test_files_of_the_float16_converter_compute_in_float32_on_the_cpu(folder):
    """onnxruntime.transformers.float16 of 1.31.1; signature and stored tensors stay 16 bits."""
    before = by_tool(halves)("mlp", folder)
    given = {"x": feeds("mlp")["x"].astype(np.float16)}
    work = open_version(ir.from_proto(onnx.load_from_string(before)), data=[given])
    after = io.to_bytes(execute(work, Goals(), lower_plan(work)).model)
    onnx.checker.check_model(onnx.load_from_string(after), full_check=True)
    assert signature(after) == signature(before)
    assert len(after) <= 1.1 * len(before)
    assert run(after, given).dtype == np.float16
    assert cosine(run(after, given), run(before, given)) > 0.9999
    types = {n.op_type: n.outputs[0].dtype for n in io_graph(after)}
    assert types["MatMul"] == ir.DataType.FLOAT


def io_graph(data: bytes) -> ir.Graph:
    return ir.from_proto(onnx.load_from_string(data)).graph


def pairs_around_floats() -> ir.Model:
    """Float weights behind Q and DQ, as NVIDIA's ModelOpt (0.47) leaves them in int8 files."""
    rows = [
        ("QuantizeLinear", ["x", "xs", "xz"], "xq", {}),
        ("DequantizeLinear", ["xq", "xs", "xz"], "xd", {}),
        ("QuantizeLinear", ["w", "ws", "wz"], "wq", {"axis": 1}),
        ("DequantizeLinear", ["wq", "ws", "wz"], "wd", {"axis": 1}),
        ("MatMul", ["xd", "wd"], "h", {}),
        ("Relu", ["h"], "y", {}),
    ]
    w = normal(WIDE, WIDE, scale=0.1)
    weights = {
        "xs": np.float32(4 / 127),
        "xz": np.int8(0),
        "w": w,
        "ws": np.abs(w).max(0) / np.float32(127),
        "wz": np.zeros(WIDE, np.int8),
    }
    return model(rows, weights, {"x": ["batch", WIDE]}, ["y"], opset=19)


def per_row_codes() -> ir.Model:
    """Weight-only codes with an axis from the end and no zero point, as NNCF 3.4 writes them."""
    rows = [
        ("DequantizeLinear", ["w_q", "w_s"], "w_d", {"axis": -1}),
        ("MatMul", ["x", "w_d"], "h", {}),
        ("DequantizeLinear", ["v_q", "v_s"], "v_d", {"axis": -2}),
        ("Gemm", ["h", "v_d", "b"], "y", {"transB": 1}),
    ]
    rng = np.random.default_rng(0)
    weights = {
        "w_q": rng.integers(-127, 128, (WIDE, WIDE), np.int8),
        "w_s": rng.uniform(0.001, 0.002, WIDE).astype(np.float32),
        "v_q": rng.integers(-127, 128, (WIDE, WIDE), np.int8),
        "v_s": rng.uniform(0.001, 0.002, WIDE).astype(np.float32),
        "b": normal(WIDE),
    }
    return model(rows, weights, {"x": ["batch", WIDE]}, ["y"], opset=17)


def moved_codes() -> ir.Model:
    """Rows and a transposed copy of codes, as onnxruntime's dynamic quantizer embeds tokens."""
    rows = [
        ("Gather", ["table", "ids"], "rows", {}),
        ("DequantizeLinear", ["rows", "s", "z"], "h", {}),
        ("Transpose", ["table"], "turned", {"perm": [1, 0]}),
        ("DequantizeLinear", ["turned", "s", "z"], "w", {}),
        ("MatMul", ["h", "w"], "y", {}),
    ]
    weights = {
        "table": np.random.default_rng(0).integers(0, 256, (3 * WIDE, WIDE), np.uint8),
        "s": np.float32(0.01),
        "z": np.uint8(128),
    }
    return model(
        rows, weights, {"ids": ["batch", "time"]}, ["y"], opset=17,
        types={"ids": onnx.TensorProto.INT64},
    )  # fmt: skip


@pytest.mark.parametrize("target", TARGETS)
def test_codes_that_are_moved_before_they_become_floats(target):
    before = io.to_bytes(moved_codes())
    plan, after = lowered(before, "tied", target)
    onnx.checker.check_model(onnx.load_from_string(after), full_check=True)
    given = feeds("tied", 8)
    assert cosine(run(after, given), run(before, given)) > 0.999
    if target == "tensorrt":
        assert plan.kept_float
    else:
        assert len(after) <= 1.1 * len(before)


def test_pairs_of_16_bits_go_and_give_no_range_for_8(folder):
    """AMD Quark (0.13) writes them as operators of com.microsoft for its A16W8."""
    rows = [
        ("QuantizeLinear", ["x", "s", "z"], "q", {}),
        ("DequantizeLinear", ["q", "s", "z"], "d", {}),
        ("Relu", ["d"], "y", {}),
    ]
    weights = {"s": np.float32(1e-4), "z": np.int16(0)}
    built = model(rows, weights, {"x": ["batch", WIDE]}, ["y"], opset=21)
    step = RestoreFloats({})
    step(built)
    assert [n.op_type for n in built.graph] == ["Relu"]
    assert not step.ranges
    assert not step.left


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("build", [pairs_around_floats, per_row_codes])
def test_structures_of_other_tools(build, target):
    before = io.to_bytes(build())
    plan, after = lowered(before, "mlp", target)
    onnx.checker.check_model(onnx.load_from_string(after), full_check=True)
    given = feeds("mlp", 8)
    assert cosine(run(after, given), run(before, given)) > 0.99
    assert signature(after) == signature(before)
    quantized = [n for n, e in plan.quantize.items() if e.weight.bits in (7, 8)]
    if target == "tensorrt" and build is per_row_codes:
        assert not quantized
        assert len(plan.kept_float) == 2
    else:
        assert len(quantized) == (2 if build is per_row_codes else 1)
        assert len(after) < 2.5 * WIDE * WIDE * len(quantized)


def test_a_file_that_cannot_run_is_told_in_a_line():
    """NNCF 3.4 gives scales of convolutions three dimensions: such a file fails in its run."""
    rows = [
        ("DequantizeLinear", ["w_q", "w_s"], "w", {"axis": 0}),
        ("Conv", ["x", "w"], "y", {}),
    ]
    weights = {
        "w_q": np.random.default_rng(0).integers(-127, 128, (32, 16, 3, 3), np.int8),
        "w_s": np.full((32, 1, 1), 0.01, np.float32),
    }
    built = model(rows, weights, {"x": ["batch", 16, 6, 6]}, ["y"], opset=17)
    work = open_version(built, data=[feeds("convolutions")])
    with pytest.raises(InputError, match="the file cannot be used as it is"):
        lower_plan(work)


def test_nothing_left_of_the_quantization_is_said(folder, tmp_path):
    """TensorRT has no weight-only form of 8 bits: the file becomes float16."""
    before = tmp_path / "w8.onnx"
    before.write_bytes(produced("mlp", "lwqc-w8", folder))
    work = open_version(before, data=[feeds("mlp")], target="tensorrt")
    report = execute(work, Goals(), lower_plan(work)).save(tmp_path / "out.onnx")
    assert report.notes == (
        "nothing of the quantization is left: tensorrt has none of its formats",
    )
    assert all(row.reason for row in report.sites)


def test_restored_models_are_kept_apart_by_their_clips():
    built = ir.from_proto(onnx.load_from_string(io.to_bytes(pairs_around_floats())))
    work = open_version(built, data=[feeds("mlp")])
    with_clip = restored(work, Restore(clips={"x": "clip"}))
    without = restored(work, Restore())
    operators = [[n.op_type for n in w.model.graph] for w in (with_clip, without)]
    assert "Clip" in operators[0]
    assert "Clip" not in operators[1]


def test_codes_follow_a_weight_that_was_scaled_and_leave_one_that_was_changed():
    encoded = encode(normal(8, 64), WeightFormat(8))
    factor = normal(8, seed=1)[:, None]
    scaled = rescaled(encoded, encoded.decode() * factor)
    np.testing.assert_array_equal(scaled.codes, encoded.codes)
    np.testing.assert_allclose(scaled.decode(), encoded.decode() * factor, rtol=1e-5)
    assert rescaled(encoded, encoded.decode()[::-1]) is None


def test_scales_become_positive_without_a_change_of_the_weight():
    encoded = encode(normal(8, 64), WeightFormat(7))
    turned = replace(encoded, scale=encoded.scale * np.where(np.arange(8) % 2, 1, -1)[:, None])
    after = with_positive_scales(turned)
    assert (after.scale > 0).all()
    np.testing.assert_array_equal(after.decode(), turned.decode())


@pytest.mark.parametrize("source", ["mlp", "convolutions"])
def test_pruned_then_quantized_then_lowered_twice(source, tmp_path):
    """Each step keeps the codes of the one before, whatever it was for."""
    io.save(SOURCES[source](), tmp_path / "float.onnx")
    data = [feeds(source, seed) for seed in range(4)]
    pruned = lwqc.prune(str(tmp_path / "float.onnx"), ratio=0.25, data=data).model
    work = open_version(pruned, data=data, target=NATIVE)
    plan = calibrate(work, uniform(work, 8, "static"), "minmax")
    first = io.to_bytes(execute(work, Goals(), plan).model)
    given = feeds(source, 8)
    for targets in (("tensorrt", NATIVE), ("cpu-arm", "tensorrt"), ("cuda", NATIVE)):
        before = first
        for target in targets:
            _, after = lowered(before, source, target)
            assert cosine(run(after, given), run(before, given)) > 0.99
            assert codes_of(after) == codes_of(first)
            assert signature(after) == signature(first)
            before = after
