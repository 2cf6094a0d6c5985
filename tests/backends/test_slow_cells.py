"""Which cells of MatMulNBits have code of their own, as the installed runtime says in its log."""

from __future__ import annotations

import itertools
import subprocess
import sys

import pytest

from lwqc.backends.cpu import CpuTarget
from lwqc.backends.slow_cells import unpacks_every_run
from lwqc.graph.sites import find_sites
from lwqc.plans.plan import SiteEntry
from lwqc.quant.formats import BLOCKS, WeightFormat
from tests.build import model, normal

CELLS = list(itertools.product((2, 4, 8), BLOCKS, ("none", "dynamic")))
# Creates a session for each cell, with a line in the log in front of each.
CHILD = """
import sys
import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

options = onnxruntime.SessionOptions()
options.log_severity_level = 1
K, N = 512, 32
for cell in sys.argv[1:]:
    bits, block, activation = cell.split(",")
    bits, block, level = int(bits), int(block), 4 if activation == "dynamic" else 0
    codes = np.full((N, K // block, block * bits // 8), 0x55, np.uint8)
    stored = {"codes": codes, "scales": np.ones((N, K // block), np.float32)}
    node = helper.make_node(
        "MatMulNBits", ["x", *stored], ["y"], domain="com.microsoft",
        K=K, N=N, bits=bits, block_size=block, accuracy_level=level,
    )
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, K])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, N])
    weights = [numpy_helper.from_array(a, n) for n, a in stored.items()]
    graph = helper.make_graph([node], "cell", [x], [y], weights)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    made = helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()
    print("cell", cell, file=sys.stderr, flush=True)
    session = onnxruntime.InferenceSession(made, options)
    session.run(None, {"x": np.ones((1, K), np.float32)})
"""


@pytest.fixture(scope="module")
def unpacked() -> set[str]:
    cells = [",".join(map(str, cell)) for cell in CELLS]
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *cells], capture_output=True, text=True, check=True
    )
    parts = done.stderr.split("cell ")[1:]
    assert [part.split("\n", 1)[0] for part in parts] == cells
    return {part.split("\n", 1)[0] for part in parts if "unpacked compute mode" in part}


@pytest.mark.parametrize(("bits", "block", "activation"), CELLS)
def test_cells_are_those_that_the_runtime_unpacks(unpacked, bits, block, activation):
    entry = SiteEntry(weight=WeightFormat(bits, block, True, "float32"), activation=activation)
    assert unpacks_every_run(entry) == (f"{bits},{block},{activation}" in unpacked)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_what_the_kernel_would_unpack_in_every_run_is_unpacked_once(bits):
    net = model([("MatMul", ["x", "w"], "y", {})], {"w": normal(512, 64)}, {"x": [1, 512]}, ["y"])
    (site,) = find_sites(net).sites
    target = CpuTarget()
    for block, activation in itertools.product(BLOCKS, ("none", "dynamic")):
        entry = SiteEntry(weight=WeightFormat(bits, block, True, "float32"), activation=activation)
        form = target.form(site, entry, 21)
        assert form == ("Folded" if bits != 4 and activation == "none" else "MatMulNBits")
    offered = [e for e in target.candidates(site, 21, tiny=True) if not e.weight.only_stored]
    assert {e.weight.bits for e in offered} == {2, 4, 8}
    assert not any(unpacks_every_run(entry) for entry in offered)
