"""Running a model part by part gives the statistics of the whole, wherever it is cut."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from lwqc.errors import InputError
from lwqc.graph.sites import find_sites
from lwqc.runtime.stats.branch_effect import BranchEffect
from lwqc.runtime.stats.collect import collect
from lwqc.runtime.stats.crossing import Crossing
from lwqc.runtime.stats.gram import Gram
from lwqc.runtime.stats.min_max import MinMax
from lwqc.runtime.stats.moments import Moments
from lwqc.runtime.stats.segmented_run import SegmentedRun
from lwqc.runtime.stats.segments import split
from tests.zoo.materialize import materialize, sample_inputs

from .conftest import parse, runner
from .in_segments import collect_in_segments

ZOO = Path(__file__).resolve().parents[2] / "zoo"
NAMES = (
    "llama.dynamo", "gpt2.dynamo", "t5.dynamo", "llama_past.legacy", "densenet121.legacy",
    "deeplabv3_mobilenet_v3_large.dynamo", "shufflenet_v2_x1_0.dynamo",
)  # fmt: skip

# Two levels down and up again, with skip connections around the middle.
UNET = """
<ir_version: 9, opset_import: ["" : 18]>
net (float[batch, 3, h, w] x) => (float[batch, 4, h, w] y) {
  a = Conv<pads = [1, 1, 1, 1]>(x, w1)
  ra = Relu(a)
  pa = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(ra)
  b = Conv<pads = [1, 1, 1, 1]>(pa, w2)
  rb = Relu(b)
  pb = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(rb)
  c = Conv<pads = [1, 1, 1, 1]>(pb, w3)
  rc = Relu(c)
  ub = ConvTranspose<strides = [2, 2]>(rc, t2)
  cb = Concat<axis = 1>(ub, rb)
  d = Conv<pads = [1, 1, 1, 1]>(cb, w4)
  ua = ConvTranspose<strides = [2, 2]>(d, t1)
  ca = Concat<axis = 1>(ua, ra)
  y = Conv<pads = [1, 1, 1, 1]>(ca, w5)
}
"""

CAPTURED = """
<ir_version: 9, opset_import: ["" : 18]>
g (bool flag, float[n, 4] x) => (float[n, 4] y) {
  a = MatMul(x, w1)
  early = Relu(a)
  wt = Transpose<perm = [1, 0]>(w2)
  b = MatMul(a, wt)
  c = MatMul(b, w3)
  z = If (flag) <
    then_branch = t () => (float[n, 4] p) { p = MatMul(early, wt) },
    else_branch = e () => (float[n, 4] q) { q = Add(early, c) }
  >
  d = MatMul(z, w4)
  y = Add(d, c)
}
"""


def unet() -> ir.Model:
    rng = np.random.default_rng(0)
    draw = lambda *shape: (rng.standard_normal(shape) * 0.2).astype(np.float32)  # noqa: E731
    return parse(
        UNET, w1=draw(8, 3, 3, 3), w2=draw(16, 8, 3, 3), w3=draw(16, 16, 3, 3),
        t2=draw(16, 16, 2, 2), w4=draw(8, 32, 3, 3), t1=draw(8, 8, 2, 2), w5=draw(4, 16, 3, 3),
    )  # fmt: skip


def captured() -> ir.Model:
    rng = np.random.default_rng(0)
    weights = {f"w{i}": rng.standard_normal((4, 4)).astype(np.float32) for i in range(1, 5)}
    return parse(CAPTURED, **weights)


def feeds_of_captured() -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    draw = lambda n: rng.standard_normal((n, 4)).astype(np.float32)  # noqa: E731
    return [{"flag": np.array(i % 2 == 0), "x": draw(n)} for i, n in enumerate((3, 1, 5))]


def same(found, wanted, names) -> None:
    for name in names:
        mine, theirs = found[MinMax(name)], wanted[MinMax(name)]
        assert (mine.low, mine.high) == pytest.approx((theirs.low, theirs.high), 1e-6, 1e-6), name
        assert found[Moments(name)].count == wanted[Moments(name)].count
        assert found[Moments(name)].squares == pytest.approx(wanted[Moments(name)].squares, 1e-6)


def floats(model: ir.Model, step: int = 1) -> list[str]:
    """Every so many float tensors of the main graph."""
    names = [v.name for n in model.graph for v in n.outputs if v.dtype == ir.DataType.FLOAT]
    return names[::step]


@pytest.mark.parametrize("name", NAMES)
def test_zoo(name):
    path = ZOO / f"{name}.onnx"
    model = ir.serde.deserialize_model(materialize(path))
    data = [sample_inputs(path, seed, batch) for seed, batch in enumerate((2, 1, 3))]
    sites = [s for s in find_sites(model).sites if s.ops <= {"MatMul", "Gemm"}]
    grams = [Gram(s.uses[0].activation.name) for s in sites][:20]
    names = floats(model, 1 + len(model.graph) // 60)
    wanted = [*(MinMax(n) for n in names), *(Moments(n) for n in names), *grams]
    total = sum(v.const_value.nbytes for v in model.graph.initializers.values())
    sessions = []

    def spy(part):
        sessions.append(part)
        return runner(part)

    found = collect_in_segments(model, wanted, data, spy, total // 8)
    assert len(sessions) >= 5
    whole = collect(model, wanted, data, runner)
    same(found, whole, names)
    for gram in grams:
        scale = np.abs(whole[gram].matrix).max()
        assert found[gram].rows == whole[gram].rows
        np.testing.assert_allclose(found[gram].matrix, whole[gram].matrix, atol=1e-6 * scale)


@pytest.mark.parametrize("max_bytes", [1, 4000, 12_000, 1 << 30])
def test_skip_connections_and_ragged_batches(max_bytes, images):
    model = unet()
    names = [v.name for n in model.graph for v in n.outputs] + ["x"]
    wanted = [c(n) for n in names for c in (MinMax, Moments)] + [
        BranchEffect("ra", output="a", axis=1)
    ]
    found = collect_in_segments(model, wanted, images, runner, max_bytes, held_bytes=100_000)
    whole = collect(model, wanted, images, runner)
    same(found, whole, names)
    assert found[wanted[-1]].cosine == pytest.approx(whole[wanted[-1]].cosine, 1e-6)


@pytest.mark.parametrize("max_bytes", [1, 64, 128, 1 << 30])
def test_values_read_inside_bodies_cross(max_bytes):
    model, data = captured(), feeds_of_captured()
    names = ["x", "a", "early", "b", "c", "z", "d", "y", "wt", "w3"]
    wanted = [c(n) for n in names for c in (MinMax, Moments)]
    same(
        collect_in_segments(model, wanted, data, runner, max_bytes),
        collect(model, wanted, data, runner),
        names,
    )


def test_segments_in_a_row_are_the_model():
    model, data = captured(), feeds_of_captured()
    for feeds in data:
        known = dict(feeds)
        for segment in split(model, 64, {n: a.shape for n, a in feeds.items()}):
            part = segment.model(model)
            for value in part.graph.inputs:
                value.dtype = ir.DataType.from_numpy(known[value.name].dtype)
            assert {v.name for v in part.graph.inputs} == set(segment.inputs)
            known |= runner(part)(known)
        np.testing.assert_allclose(known["y"], runner(model)(feeds)["y"], rtol=1e-6)


def test_what_weights_determine_does_not_cross():
    segments = split(captured(), 1, {"x": (3, 4), "flag": ()})
    assert len(segments) == 5
    assert all("wt" not in s.inputs + s.outputs for s in segments)
    assert [s.held_bytes for s in segments] == [64] * 5


def test_a_cut_goes_where_least_is_alive():
    """Weights of 256 bytes allow a cut after up, act or down; only down's output is narrow."""
    body = "".join(
        f"u{i} = MatMul(x{i}, up{i}) r{i} = Relu(u{i}) d{i} = MatMul(r{i}, down{i}) "
        f"x{i + 1} = Add(x{i}, d{i}) "
        for i in range(4)
    )
    model = parse(
        '<ir_version: 9, opset_import: ["": 18]> '
        f"g (float[n, 4] x0) => (float[n, 4] x4) {{{body}}}",
        **{f"up{i}": np.ones((4, 16), np.float32) for i in range(4)},
        **{f"down{i}": np.ones((16, 4), np.float32) for i in range(4)},
    )
    segments = split(model, 3 * 256, {"x0": (5, 4)})
    assert [s.inputs for s in segments] == [("x0",), ("x1",), ("x2",), ("x3",)]
    assert [s.outputs for s in segments] == [("x1",), ("x2",), ("x3",), ("x4",)]


def test_a_sequence_of_tensors_is_never_cut():
    model = parse("""
<ir_version: 9, opset_import: ["" : 18]>
g (float[n, 4] x) => (float[n, 4] y) {
  a = MatMul(x, w1)
  s = SplitToSequence<axis = 1>(a)
  b = MatMul(a, w2)
  c = ConcatFromSequence<axis = 1>(s)
  d = Add(b, c)
  y = MatMul(d, w3)
}
""", **{f"w{i}": np.eye(4, dtype=np.float32) for i in (1, 2, 3)})  # fmt: skip
    for node in model.graph:
        if node.op_type == "SplitToSequence":
            node.outputs[0].type = ir.SequenceType(ir.TensorType(ir.DataType.FLOAT))
    segments = split(model, 64, {"x": (3, 4)})
    assert len(segments) > 1
    assert all("s" not in s.inputs for s in segments)
    data = [{"x": np.ones((3, 4), np.float32)}]
    assert collect_in_segments(model, [MinMax("y")], data, runner, 64)[MinMax("y")].high == 2


def test_data_is_read_once_and_later_segments_only_as_far_as_needed():
    model, calls = captured(), []

    def spy(part):
        calls.append({v.name for v in part.graph.initializers.values()})
        return runner(part)

    found = collect_in_segments(model, [MinMax("b")], iter(feeds_of_captured()), spy, 64)
    whole = collect(model, [MinMax("b")], feeds_of_captured(), runner)
    assert found[MinMax("b")].high == pytest.approx(whole[MinMax("b")].high)
    read = set().union(*calls)
    assert {"w1", "w2"} <= read
    assert not {"w3", "w4"} & read


def test_memory_between_segments_is_freed_and_bounded():
    model, data = unet(), [{"x": np.ones((1, 3, 32, 32), np.float32)}] * 4
    segments = split(model, 4000, {"x": (1, 3, 32, 32)})
    run = SegmentedRun(model, segments, data, runner, crossing=Crossing(100_000))
    most = files = 0
    for _ in segments:
        run.advance()
        most = max(most, run._crossing.held_bytes)
        files = max(files, run._crossing.files)
    assert 0 < most <= 100_000
    assert files > 0
    assert (run._crossing.held_bytes, run._crossing.files) == (0, 0)


def test_spilled_arrays_come_back():
    crossing = Crossing(100)
    arrays = [np.full((10, i + 1), i, np.int64) for i in range(3)]
    for i, array in enumerate(arrays):
        crossing.put("x", i, array)
    assert crossing.files == 2 + (arrays[0].nbytes > 100)
    for i, array in enumerate(arrays):
        np.testing.assert_array_equal(crossing.get("x", i), array)
        crossing.drop("x", i)
    assert crossing.get("x", 0) is None
    assert (crossing.files, crossing.held_bytes) == (0, 0)


def test_progress_counts_runs():
    seen = []
    model, data = unet(), [{"x": np.ones((1, 3, 8, 8), np.float32)}] * 3
    report = lambda done, total: seen.append((done, total))  # noqa: E731
    collect_in_segments(model, [MinMax("y")], data, runner, 4000, report)
    total = seen[0][1]
    assert seen == [(i + 1, total) for i in range(total)]
    assert total % 3 == 0
    assert total > 3


def test_errors():
    model, data = captured(), feeds_of_captured()
    with pytest.raises(InputError, match="nowhere: no such tensor"):
        collect_in_segments(model, [MinMax("nowhere")], data, runner, 64)
    with pytest.raises(InputError, match="p: is inside the body"):
        collect_in_segments(model, [MinMax("p")], data, runner, 64)
    with pytest.raises(InputError, match="no sample"):
        collect_in_segments(model, [MinMax("y")], [], runner, 64)
    collect_in_segments(model, [], data, runner, 64)
