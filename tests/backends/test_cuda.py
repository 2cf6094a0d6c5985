"""The CUDA target: forms, the table of kernels, what it refuses to hand to the CPU."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import lwqc
from lwqc.backends import devices
from lwqc.backends.cuda import CudaTarget
from lwqc.backends.cuda_kernels import missing_kernel
from lwqc.backends.device_bench import device_latencies
from lwqc.compile.execute import execute
from lwqc.decide.compress import open_version
from lwqc.decide.lower import lower_plan
from lwqc.errors import InputError
from lwqc.graph.sites import find_sites
from lwqc.model import io
from lwqc.passes.encoded_weights import EncodedWeights
from lwqc.plans.goals import Goals
from lwqc.plans.plan import Floats, Plan, SiteEntry, Source
from lwqc.runtime.session import VERSION, Session, SessionSettings
from tests.backends import cuda_kernel_table, cuda_stubs
from tests.build import model, normal

TARGET = CudaTarget()
TABLE = Path(lwqc.__file__).parent / "backends" / "cuda_kernels.txt"
HALF = Floats(dtype="float16")


def linear(k, n, op="MatMul"):
    rows = [(op, ["x", "w"], "y", {})]
    if op == "Gather":
        types = {"x": onnx.TensorProto.INT64}
        return model(
            [(op, ["w", "x"], "y", {})], {"w": normal(n, k)}, {"x": ["m"]}, ["y"], types=types
        )
    return model(rows, {"w": normal(k, n, scale=0.1)}, {"x": ["m", k]}, ["y"])


FORMS = [
    ("MatMul", 128, 64, "w4b32h", "none", "MatMulNBits"),
    ("MatMul", 128, 96, "w8b32h", "none", "MatMulNBits"),
    ("MatMul", 128, 64, "w3b32h", "none", "MatMulNBits"),
    ("MatMul", 128, 96, "w4b32h", "none", "Folded"),
    ("MatMul", 128, 64, "w8c", "none", "Folded"),
    ("Gather", 128, 50, "w4b32h", "none", "GatherBlockQuantized"),
    ("MatMul", 100, 64, "w4b32h", "none", "not a multiple of the block"),
    ("MatMul", 256, 64, "w4b256h", "none", "blocks of 32, 64, 128"),
    ("MatMul", 128, 64, "w2b32h", "none", "2-bit weights have no fast kernel"),
    ("MatMul", 128, 64, "w8c", "dynamic", "no kernels for 8-bit activations"),
    ("MatMul", 128, 64, "nf4b64", "none", "no fast kernel on CUDA"),
]


@pytest.mark.parametrize(("op", "k", "n", "fmt", "activation", "expected"), FORMS)
def test_forms_follow_the_shapes_of_the_fast_kernels(op, k, n, fmt, activation, expected):
    built = linear(k, n, op)
    entry = SiteEntry(weight=fmt, activation=activation)
    form = TARGET.form(find_sites(built).sites[0], entry, 20)
    assert expected in form
    if TARGET.refuses(form):
        return
    plan = Plan(source=Source(), quantize={"w": entry}, floats=HALF)
    weights = EncodedWeights(built, io.read_array)
    done = TARGET.lower(built, plan, weights).model
    assert TARGET.violations(done) == []
    decoded = weights.get("w", entry).decode()
    x = np.array([3, 0, 7]) if op == "Gather" else normal(4, k)
    wanted = decoded[x] if op == "Gather" else x @ decoded.T
    found = Session(done, SessionSettings(optimize=False))({"x": x})["y"]
    np.testing.assert_allclose(found, wanted, atol=5e-3 * np.abs(wanted).max())


def test_scales_and_activations_of_matmulnbits_are_half():
    built = linear(128, 64)
    plan = Plan(source=Source(), quantize={"w": SiteEntry(weight="w4b32h")}, floats=HALF)
    done = TARGET.lower(built, plan, EncodedWeights(built, io.read_array)).model
    node = next(n for n in done.graph if n.op_type == "MatMulNBits")
    assert [node.inputs[0].dtype, node.inputs[2].dtype] == [ir.DataType.FLOAT16] * 2
    assert [n.op_type for n in done.graph] == ["Cast", "MatMulNBits", "Cast"]


def test_nodes_without_a_kernel_are_an_error_unless_accepted():
    built = model(
        [("DynamicQuantizeLinear", ["x"], "q", {}), ("Cast", ["q"], "y", {"to": 1})],
        {},
        {"x": ["n", 8]},
        ["y"],
    )
    node = built.graph[0]
    node.outputs[0].name = "q"
    work = open_version(built, data=[{"x": normal(2, 8)}], target="cuda")
    plan = Plan(source=Source(), target="cuda", rewrites=TARGET.rewrites)
    with pytest.raises(InputError, match=r"no kernel of DynamicQuantizeLinear.*--allow-fallback"):
        execute(work, Goals(), plan)
    work = open_version(built, data=[{"x": normal(2, 8)}], target="cuda", allow_fallback=True)
    assert "DynamicQuantizeLinear" in execute(work, Goals(), plan).fallbacks[0]


@pytest.mark.parametrize(("source", "refused"), [("Shape", False), ("Cast", True)])
def test_arithmetic_on_shapes_needs_no_kernel(source, refused):
    """ReduceProd of int64, which CUDA lacks: shapes are on the CPU, other numbers are not."""
    attributes = {"to": onnx.TensorProto.INT64} if source == "Cast" else {}
    rows = [
        (source, ["x"], "sizes", attributes),
        ("ReduceProd", ["sizes"], "count", {"keepdims": 0}),
        ("Cast", ["count"], "number", {"to": onnx.TensorProto.FLOAT}),
        ("MatMul", ["x", "w"], "a", {}),
        ("Div", ["a", "number"], "y", {}),
    ]
    built = model(rows, {"w": normal(40, 50)}, {"x": ["m", 40]}, ["y"])
    found = [line for line in TARGET.violations(built) if "ReduceProd" in line]
    assert bool(found) == refused


def test_kernels_are_looked_up_by_version_and_type():
    value = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT))
    relu = ir.node("Relu", [value])
    assert missing_kernel(relu, 17) == ""
    assert missing_kernel(relu, 17, ir.DataType.BFLOAT16) == ""
    pad = ir.node("Pad", [value, None])
    assert "for bfloat16" in missing_kernel(pad, 17, ir.DataType.BFLOAT16)
    assert "no kernel of QLinearConv" in missing_kernel(ir.node("QLinearConv", [value]), 17)


@pytest.mark.skipif(bool(cuda_stubs.unavailable()), reason=cuda_stubs.unavailable())
def test_the_table_of_kernels_is_that_of_the_installed_runtime():
    if VERSION not in TABLE.read_text().splitlines()[0]:
        pytest.skip(f"the table is for another version than {VERSION}")
    assert cuda_kernel_table.table() == TABLE.read_text()


def test_a_missing_device_is_told_in_a_sentence():
    reason = devices.provider_problem("CUDAExecutionProvider")
    if not reason:
        pytest.skip("this machine has the device")
    assert "CUDAExecutionProvider" in reason
    with pytest.raises(InputError, match=r"target cuda: .*CUDAExecutionProvider"):
        device_latencies(TARGET, [Path("any.onnx")], {}, 0.1, {})


def test_a_provider_that_the_runtime_lacks_is_told(monkeypatch):
    monkeypatch.setattr(devices, "available_providers", lambda: ["CPUExecutionProvider"])
    devices.provider_problem.cache_clear()
    reason = devices.provider_problem("CUDAExecutionProvider")
    devices.provider_problem.cache_clear()
    assert "has no CUDAExecutionProvider" in reason
    assert "onnxruntime-gpu" in reason


@pytest.mark.timed
def test_bound_sessions_are_timed_without_transfers():
    session = Session(linear(64, 32))
    feeds = {"x": normal(4, 64)}
    session.bind(feeds, "cpu", session(feeds))
    assert session.seconds({}) > 0


def test_plans_for_cuda_are_replayed_to_the_same_bytes(tmp_path):
    built = linear(128, 64)
    work = open_version(built, data=[{"x": normal(4, 128)}], target="cuda")
    plan = lower_plan(work)
    plan.save(tmp_path / "plan.json")
    again = Plan.load(tmp_path / "plan.json")
    first, second = (io.to_bytes(execute(work, Goals(), p).model) for p in (plan, again))
    assert first == second


def test_pruned_widths_are_what_the_kernels_like():
    rows = [
        ("MatMul", ["x", "w"], "h", {}),
        ("Relu", ["h"], "r", {}),
        ("MatMul", ["r", "v"], "y", {}),
    ]
    weights = {"w": normal(64, 320), "v": normal(320, 64, seed=1)}
    built = model(rows, weights, {"x": ["n", 64]}, ["y"])
    data = [{"x": normal(8, 64)}]
    kept = {}
    for asked in (None, 10):
        options = {} if asked is None else {"round_to": asked}
        done = lwqc.prune(built, ratio=0.3, recipe="spa-l2", target="cuda", data=data, **options)
        kept[asked] = next(v.shape[1] for n, v in done.model.graph.initializers.items() if n == "w")
    assert kept[None] % 64 == 0
    assert kept[None] < 320
    assert kept[10] == 220
