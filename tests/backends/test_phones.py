"""The targets for phones: forms, and what they would not run."""

import re

import onnx
import onnx_ir as ir
import pytest

import lwqc
from lwqc.backends.phone_operators import COREML
from lwqc.backends.phones import CoremlTarget, QnnTarget
from lwqc.graph.sites import find_sites
from lwqc.model import io
from lwqc.plans.plan import SiteEntry
from lwqc.runtime.session import installed_folder
from tests.backends.test_openvino import network
from tests.build import model, normal

SITES = {s.name: s for s in find_sites(network()).sites}


def test_the_list_of_coreml_is_that_of_the_installed_runtime():
    helpers = installed_folder().parent / "tools" / "mobile_helpers"
    text = (helpers / "coreml_supported_mlprogram_ops.md").read_text()
    found = re.findall(r"^\|ai\.onnx:(\w+)\|", text, re.M)
    names = {"ArgMax" if name == "Argmax" else name for name in found}
    assert names == COREML[""]
    assert all(onnx.defs.has(name) for name in names)


@pytest.mark.parametrize(
    ("target", "site", "weight", "activation", "form"),
    [
        (CoremlTarget, "m", "w4b32h", "none", "Folded"),
        (CoremlTarget, "e", "w4b32h", "none", "Folded"),
        (CoremlTarget, "c1", "w8c", "static", "CoreML has no kernels for 8-bit activations"),
        (QnnTarget, "c1", "w8c", "static", "QLinearConv"),
        (QnnTarget, "m", "w8c", "static", "stays in float16"),
        (QnnTarget, "m", "w8c", "dynamic", "no dynamic ranges"),
        (QnnTarget, "m", "w4b32h", "none", "Folded"),
    ],
)
def test_forms(target, site, weight, activation, form):
    found = target().form(SITES[site], SiteEntry(weight=weight, activation=activation), 21)
    assert form in found
    assert target().refuses(found) == (" " in form)


def convolutions(rows="1"):
    built = [
        ("Conv", ["x", "w"], "a", {"pads": [1] * 4}),
        ("Relu", ["a"], "b", {}),
        ("Conv", ["b", "v"], "y", {"pads": [1] * 4}),
    ]
    weights = {"w": normal(32, 16, 3, 3, scale=0.1), "v": normal(16, 32, 3, 3, scale=0.1)}
    return model(built, weights, {"x": [rows, 16, 8, 8]}, ["y"])


def test_qnn_quantizes_convolutions_between_pairs(tmp_path):
    data = [{"x": normal(1, 16, 8, 8)}]
    options = {"bits": 8, "activations": "static", "data": data, "target": "qnn"}
    done = lwqc.quantize(convolutions(1), **options)
    report = done.save(tmp_path / "o.onnx")
    assert "Qualcomm" in report.unmeasured
    graph = io.load(tmp_path / "o.onnx").graph
    assert {node.domain for node in graph} == {""}
    quantized = {n.inputs[2].dtype for n in graph if n.op_type == "QuantizeLinear"}
    assert quantized == {ir.DataType.UINT8}
    assert report.output_bytes < report.source_bytes


@pytest.mark.parametrize("target", [CoremlTarget, QnnTarget])
def test_what_would_run_elsewhere_is_told(target):
    node = ir.node("NonZero", [ir.Value(name="x")], name="n")
    graph = ir.Graph(node.inputs, node.outputs, nodes=[node], opset_imports={"": 17}, name="g")
    found = target().violations(ir.Model(graph, ir_version=8))
    assert found[-1].startswith("NonZero n: ")
    assert "would run on the CPU" in found[-1]


def test_qnn_wants_fixed_sizes():
    assert QnnTarget().violations(convolutions(1)) == []
    assert "not fixed" in QnnTarget().violations(convolutions("n"))[0]
