"""The instrumented run: which tensors, what it leaves alone, and its memory."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from lwqc.errors import InputError
from lwqc.runtime.stats.branch_effect import BranchEffect
from lwqc.runtime.stats.collect import collect, instrument
from lwqc.runtime.stats.histogram import Histogram
from lwqc.runtime.stats.min_max import MinMax
from lwqc.runtime.stats.moments import Moments
from lwqc.runtime.stats.shapes import Shapes

from .conftest import parse, runner

ROOT = Path(__file__).resolve().parents[3]


def test_the_model_is_left_alone(conv_net, images):
    before = ir.serde.serialize_model(conv_net).SerializeToString()
    collect(conv_net, [MinMax("c1"), Moments("s", 1)], images, runner)
    assert ir.serde.serialize_model(conv_net).SerializeToString() == before


def test_the_copy_shares_weights_and_drops_what_no_statistic_needs(conv_net):
    copy, names = instrument(conv_net, [MinMax("r1")])
    assert (
        copy.graph.initializers["w1"].const_value is conv_net.graph.initializers["w1"].const_value
    )
    assert set(copy.graph.initializers) == {"w1", "b1"}
    assert {n.op_type for n in copy.graph if "Reduce" not in n.op_type} == {"Conv", "Relu"}
    assert [o.name for o in copy.graph.outputs] == names[0]


def test_equal_requests_are_computed_once(conv_net):
    calls = []

    def spy(model):
        calls.append(len(model.graph.outputs))
        return runner(model)

    data = [{"x": np.ones((1, 3, 8, 8), np.float32)}]
    found = collect(conv_net, [Shapes("x"), Shapes("x"), Shapes("y")], data, spy)
    assert calls == [2]
    assert found[Shapes("x")].last == (1, 3, 8, 8)


@pytest.mark.parametrize("opset", [11, 12, 13, 17, 18, 21])
def test_opsets(opset):
    model = parse(
        f'<ir_version: 8, opset_import: ["": {opset}]> '
        "g (float[n, 4] x) => (float[n, 4] y) { y = Relu(x) }"
    )
    x = np.arange(8, dtype=np.float32).reshape(2, 4) - 3
    wanted = [MinMax("y"), Moments("y", 1), BranchEffect("x", output="y"), Histogram("y")]
    found = collect(model, wanted, [{"x": x}], runner)
    assert found[MinMax("y")].high == 4
    assert found[Moments("y", 1)].total.tolist() == [1, 2, 3, 4]
    assert found[Histogram("y")].high == 4


def test_inputs_outputs_and_initializers(conv_net, images):
    found = collect(conv_net, [MinMax(n) for n in ("x", "y", "w1")], images[:1], runner)
    weight = conv_net.graph.initializers["w1"].const_value.numpy()
    assert found[MinMax("w1")].low == weight.min()
    assert found[MinMax("x")].high == images[0]["x"].max()


def test_half_precision_values():
    model = parse(
        '<ir_version: 9, opset_import: ["": 18]> g (float16[n] x) => (float16[n] y) { y = Relu(x) }'
    )
    x = np.full(2000, 100, np.float16)  # their sum of squares overflows a half
    found = collect(model, [Moments("y"), MinMax("y"), Histogram("y")], [{"x": x}], runner)
    assert found[Moments("y")].squares == 2e7
    assert found[MinMax("y")].high == 100
    assert found[Histogram("y")].high == 100


def test_empty_samples_change_nothing():
    model = parse(
        '<ir_version: 9, opset_import: ["": 18]> '
        "g (float[n, 4] x) => (float[n, 4] y) { y = Relu(x) }"
    )
    empty, full = np.zeros((0, 4), np.float32), np.arange(4, dtype=np.float32).reshape(1, 4)
    same = BranchEffect("x", output="y")
    wanted = [MinMax("y"), Moments("y"), Moments("y", 1), Histogram("y"), same]
    found = collect(model, wanted, [{"x": a} for a in (empty, full, empty)], runner)
    assert (found[MinMax("y")].low, found[MinMax("y")].high) == (0, 3)
    assert found[MinMax("y")].finite
    assert found[Moments("y")].count == 4
    assert found[Moments("y", 1)].absmax.tolist() == [0, 1, 2, 3]
    assert found[Histogram("y")].counts.sum() == 4
    assert found[same].count == 1


def test_values_inside_a_body_are_refused(images):
    model = parse("""
<ir_version: 9, opset_import: ["" : 18]>
g (bool c, float[n] x) => (float[n] y) {
  y = If (c) <
    then_branch = a () => (float[n] inner) { inner = Relu(x) },
    else_branch = b () => (float[n] other) { other = Abs(x) }
  >
}
""")
    feeds = {"c": np.array(True), "x": np.array([-1, 2], np.float32)}
    with pytest.raises(InputError, match=r"inner: is inside the body of an If, Loop or Scan"):
        collect(model, [MinMax("inner")], [feeds], runner)
    assert collect(model, [MinMax("y")], [feeds], runner)[MinMax("y")].high == 2


def test_unknown_tensor_and_empty_data(conv_net):
    with pytest.raises(InputError, match="nowhere: no such tensor"):
        collect(conv_net, [MinMax("nowhere")], [], runner)
    with pytest.raises(InputError, match="no sample"):
        collect(conv_net, [MinMax("x")], [], runner)


def test_memory_does_not_grow_with_the_number_of_samples(conv_net):
    def samples(count):
        rng = np.random.default_rng(0)
        for _ in range(count):
            yield {"x": rng.standard_normal((1, 3, 64, 64)).astype(np.float32)}

    def peak(count):
        tracemalloc.start()
        collect(conv_net, [Histogram("s"), MinMax("s"), Moments("c1", 1)], samples(count), runner)
        high = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return high

    peak(1)
    assert peak(64) <= 1.05 * peak(4)


_DEEP = """
import resource, sys
import numpy as np
import onnx_ir as ir
from lwqc.runtime.stats.collect import collect
from lwqc.runtime.stats.min_max import MinMax
from tests.runtime.stats.conftest import parse, runner
depth = int(sys.argv[1])
body = "".join(f"v{i + 1} = Sin(v{i}) " for i in range(depth))
model = parse('<ir_version: 9, opset_import: ["": 18]> '
              "g (float[n] v0) => (float[n] v%d) { %s }" % (depth, body))
feeds = {"v0": np.ones(4_000_000, np.float32)}
collect(model, [MinMax(f"v{i}") for i in range(depth + 1)], [feeds], runner)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def test_activations_are_freed_once_reduced():
    """Peak memory of a chain of 16 MB activations does not grow with its length."""
    pytest.importorskip("resource")

    def peak_mb(depth):
        command = [sys.executable, "-c", _DEEP, str(depth)]
        return int(subprocess.run(command, stdout=subprocess.PIPE, check=True, cwd=ROOT).stdout)

    assert peak_mb(24) <= peak_mb(4) + 80  # 320 more if all stayed alive
