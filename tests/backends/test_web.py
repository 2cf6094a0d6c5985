"""The targets in a browser: which forms they have, and what they refuse."""

import onnx_ir as ir
import pytest

import lwqc
from lwqc.backends.web import WebGpuTarget, WebTarget
from lwqc.graph.sites import find_sites
from lwqc.model import io
from lwqc.plans.plan import SiteEntry
from tests.backends.test_openvino import FEEDS, network

SITES = {s.name: s for s in find_sites(network()).sites}


@pytest.mark.parametrize(
    ("target", "site", "weight", "activation", "form"),
    [
        (WebTarget, "m", "w4b32h", "none", "Folded"),
        (WebTarget, "m", "w4b32", "dynamic", "twice the float time"),
        (WebTarget, "m", "w8c", "dynamic", "MatMulInteger"),
        (WebTarget, "m", "dgw8b32", "dynamic", "never run in a browser"),
        (WebTarget, "c1", "w8c", "static", "QLinearConv"),
        (WebGpuTarget, "m", "w4b32h", "none", "MatMulNBits"),
        (WebGpuTarget, "m", "w2b16h", "none", "MatMulNBits"),
        (WebGpuTarget, "m", "w4b128h", "none", "not a multiple of the block"),
        (WebGpuTarget, "c1", "w8c", "none", "Folded"),
        (WebGpuTarget, "c1", "w8c", "static", "WebGPU has no kernels for 8-bit activations"),
        (WebGpuTarget, "m", "nf4b32", "none", "no fast kernel on WebGPU"),
    ],
)
def test_forms(target, site, weight, activation, form):
    found = target().form(SITES[site], SiteEntry(weight=weight, activation=activation), 21)
    assert form in found
    assert target().refuses(found) == (" " in form)


@pytest.mark.parametrize("target", ["web", "webgpu"])
def test_everything_in_4_bits(tmp_path, target):
    done = lwqc.quantize(network(21), bits=4, target=target, data=[FEEDS])
    report = done.save(tmp_path / "o.onnx")
    assert "runs in a browser" in report.unmeasured
    operators = {node.op_type for node in io.load(tmp_path / "o.onnx").graph}
    assert ("MatMulNBits" in operators) == (target == "webgpu")


def test_what_the_gpu_has_no_kernel_for_is_told(monkeypatch):
    node = ir.node("NonZero", [ir.Value(name="x")], name="n")
    graph = ir.Graph(node.inputs, node.outputs, nodes=[node], opset_imports={"": 17}, name="g")
    built = ir.Model(graph, ir_version=8)
    assert "NonZero n: WebGPU has no kernel" in WebGpuTarget().violations(built)[0]
    assert WebTarget().violations(built) == []
    monkeypatch.setattr(io, "weight_bytes", lambda model: 3_000_000_000)
    assert "pages have to name" in WebTarget().violations(built)[0]


def test_sums_are_exact_on_every_processor():
    assert WebTarget().integer_bits == 8
    assert WebTarget().name == "web"
