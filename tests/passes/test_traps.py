"""Situations in which rewrites of other tools break models, for every form at once."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from lwqc.backends.cpu import CpuTarget
from lwqc.graph.sites import find_sites
from lwqc.model import io
from lwqc.passes.encoded_weights import EncodedWeights
from lwqc.plans.plan import ActivationRange, Plan, SiteEntry, Source
from lwqc.runtime.session import Session
from lwqc.testing import TRAPS
from tests.build import model, normal
from tests.processor import INTEGER

ENTRIES = [
    SiteEntry(weight="w8b32"),
    SiteEntry(weight="w8c"),
    SiteEntry(weight=INTEGER, activation="dynamic"),
    SiteEntry(weight=INTEGER, activation="static"),
]
every_form = pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: f"{e.weight}-{e.activation}")


def check(built, entry, feeds, least=0.999):
    """Lower every site, run, and compare with the original; returns the lowered model."""
    target = CpuTarget()
    plan = Plan(
        source=Source(digest=""),
        quantize={s.name: entry for s in find_sites(built).sites},
        activations={
            v.name: ActivationRange(low=-5, high=5)
            for node in built.graph.all_nodes()
            for v in node.inputs
            if v is not None and v.name
        },
    )
    assert plan.quantize
    lowered = target.lower(built, plan, EncodedWeights(built, io.read_array)).model
    onnx.checker.check_model(ir.serde.serialize_model(lowered), full_check=True)
    expected, found = Session(built)(feeds), Session(lowered)(feeds)
    assert list(expected) == list(found)
    for name, a in expected.items():
        b = found[name]
        assert a.shape == b.shape
        assert (a * b).sum() >= least * np.linalg.norm(a) * np.linalg.norm(b)
    return lowered


X = {"x": normal(4, 64, seed=9)}


@every_form
def test_weight_shared_by_two_nodes(entry):
    lowered = check(TRAPS["shared-weight"].model(), entry, X)
    assert sum("w_" in name for name in lowered.graph.initializers) <= 6


@every_form
def test_result_that_is_also_a_graph_output(entry):
    check(TRAPS["result-and-output"].model(), entry, X)


@every_form
def test_activation_read_by_several_sites_and_another_node(entry):
    lowered = check(TRAPS["many-readers"].model(), entry, X)
    quantizers = [
        n
        for n in lowered.graph
        if n.op_type.endswith("QuantizeLinear") or n.op_type == "DynamicQuantizeLinear"
    ]
    assert len(quantizers) <= 1


@every_form
def test_two_dimensional_bias_of_a_gemm(entry):
    check(TRAPS["wide-bias"].model(), entry, X)


@every_form
def test_higher_rank_and_symbolic_dimensions(entry):
    built = model(
        [("MatMul", ["x", "w"], "y", {})],
        {"w": normal(64, 48)},
        {"x": ["batch", "sequence", 64]},
        ["y"],
    )
    lowered = check(built, entry, {"x": normal(2, 3, 64)})
    assert [str(d) for d in lowered.graph.inputs[0].shape] == ["batch", "sequence", "64"]


@pytest.mark.parametrize("entry", ENTRIES[:3], ids=lambda e: f"{e.weight}-{e.activation}")
def test_use_inside_an_if_body(entry):
    weight = normal(64, 48)
    body = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["inner"])],
        "then", [], [helper.make_tensor_value_info("inner", 1, ["m", 48])],
    )  # fmt: skip
    other = helper.make_graph(
        [helper.make_node("MatMul", ["x", "v"], ["inner2"])],
        "else", [], [helper.make_tensor_value_info("inner2", 1, ["m", 48])],
        [numpy_helper.from_array(normal(64, 48, seed=4), "v")],
    )  # fmt: skip
    graph = helper.make_graph(
        [helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=other)],
        "g",
        [
            helper.make_tensor_value_info("x", 1, ["m", 64]),
            helper.make_tensor_value_info("c", 9, []),
        ],
        [helper.make_tensor_value_info("y", 1, ["m", 48])],
        [numpy_helper.from_array(weight, "w")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    built = ir.serde.deserialize_model(proto)
    for condition in (True, False):
        check(built, entry, {**X, "c": np.array(condition)})


@every_form
def test_external_data(entry, tmp_path):
    loaded = TRAPS["external-data"].model(tmp_path)
    assert isinstance(loaded.graph.initializers["w"].const_value, ir.ExternalTensor)
    check(loaded, entry, X)


def test_static_convolution_whose_output_is_a_graph_output_stays_float():
    built = model(
        [("Conv", ["x", "w"], "y", {})], {"w": normal(16, 8, 3, 3)}, {"x": [1, 8, 9, 9]}, ["y"]
    )
    entry = SiteEntry(weight=INTEGER, activation="static")
    lowered = check(built, entry, {"x": normal(1, 8, 9, 9)}, least=0.99999)
    assert "QuantizeLinear" not in {n.op_type for n in lowered.graph}
