"""Functions, bodies and Gemm in the one form that every command sees."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from lwqc.graph.sites import find_sites
from lwqc.model.names import gather_names, unique_name
from lwqc.passes.one_view import one_view
from lwqc.passes.plain_gemm import PlainGemm
from lwqc.runtime.session import Session
from tests.build import model, normal


def text(source):
    proto = onnx.parser.parse_model(source)
    onnx.checker.check_model(proto)
    return ir.serde.deserialize_model(proto)


CALLS = """<ir_version: 8, opset_import: ["" : 17, "l" : 1]>
g (float[n,4] x, bool c) => (float[n,4] y, float[n,4] z) {
  m = l.Scaled <alpha = 0.5> (x)
  z = l.Scaled(m)
  a, b = l.Two(x)
  t = Relu(b)
  y = If(c) <
    then_branch = th () => (float[n,4] q) { h = Relu(t)  q = l.Deep(h) },
    else_branch = el () => (float[n,4] q2) { q2 = l.Optional(t) }>
}
<domain: "l", opset_import: ["" : 17]> Scaled <alpha: float = 0.25> (a) => (b) {
  b = LeakyRelu <alpha: float = @alpha> (a)
}
<domain: "l", opset_import: ["" : 17]> Optional (a, lo, hi) => (b) { b = Clip(a, lo, hi) }
<domain: "l", opset_import: ["" : 17]> Two (a) => (o, p) { h = Neg(a) o = Relu(h) p = Abs(h) }
<domain: "l", opset_import: ["" : 17, "l" : 1]> Deep (a) => (o) {
  t = Neg(a)
  u, w = l.Two(t)
  o = Add(t, w)
}
"""


def test_functions_are_inlined_and_compute_the_same():
    given = text(CALLS)
    view = one_view(given)
    assert not view.functions
    assert given.functions
    onnx.checker.check_model(ir.serde.serialize_model(view), full_check=True)
    for c in (True, False):
        feeds = {"x": normal(3, 4), "c": np.array(c)}
        before, after = Session(given)(feeds), Session(view)(feeds)
        assert all((before[n] == after[n]).all() for n in ("y", "z"))


def test_a_function_of_another_opset_stays():
    given = text("""<ir_version: 8, opset_import: ["" : 17, "l" : 1]>
g (float[n,4] x) => (float[n,4] y) { y = l.Old(x) }
<domain: "l", opset_import: ["" : 16]> Old (a) => (o) { o = Neg(a) }
""")
    assert len(one_view(given).functions) == 1


def test_a_model_without_anything_hidden_is_itself():
    given = model([("MatMul", ["x", "w"], "y", {})], {"w": normal(4, 4)}, {"x": ["n", 4]}, ["y"])
    assert one_view(given) is given


def gemm(attributes, weights, inputs=("x", "w", "b")):
    rows = [("Gemm", list(inputs), "y", attributes)]
    return model(rows, weights, {"x": ["n", 40]}, ["y"])


W, B = normal(40, 32, seed=1), normal(32, seed=2)
X = {"x": normal(6, 40, seed=3)}


@pytest.mark.parametrize(
    ("attributes", "weights", "inputs"),
    [
        ({"alpha": 0.5, "beta": 2.0}, {"w": W, "b": B}, ("x", "w", "b")),
        ({"alpha": -1.5}, {"w": W}, ("x", "w")),
        ({"beta": 0.0}, {"w": W, "b": np.float32(7)}, ("x", "w", "b")),
        ({"beta": 3.0}, {"w": W}, ("x", "w")),
        ({"alpha": 0.5}, {"w": W.astype(np.float16)}, ("x", "w")),
        ({"alpha": 0.25, "transB": 1}, {"w": W.T.copy(), "b": B}, ("x", "w", "b")),
    ],
    ids=["both", "alpha", "no-bias", "beta-alone", "half", "transposed"],
)
def test_factors_move_into_stored_operands(attributes, weights, inputs):
    if weights["w"].dtype == np.float16:
        rows = [("Cast", ["x"], "h", {"to": 10}), ("Gemm", ["h", "w"], "o", attributes)]
        rows.append(("Cast", ["o"], "y", {"to": 1}))
        given = model(rows, weights, {"x": ["n", 40]}, ["y"])
    else:
        given = gemm(attributes, weights, inputs)
    changed = given.clone()
    assert PlainGemm()(changed).modified
    assert not PlainGemm()(changed).modified
    (node,) = [n for n in changed.graph if n.op_type == "Gemm"]
    assert node.attributes.keys() <= {"transB"}
    a, b = Session(given)(X)["y"], Session(changed)(X)["y"]
    assert np.allclose(a, b, rtol=1e-5, atol=0.02 if weights["w"].dtype == np.float16 else 1e-4)
    assert len(find_sites(changed).sites) == 1


def test_a_weight_that_others_read_keeps_its_value():
    rows = [("Gemm", ["x", "w"], "a", {"alpha": 2.0}), ("MatMul", ["a", "w"], "y", {})]
    given = model(rows, {"w": normal(40, 40)}, {"x": ["n", 40]}, ["y"])
    changed = given.clone()
    PlainGemm()(changed)
    assert np.allclose(Session(given)(X)["y"], Session(changed)(X)["y"], rtol=1e-5, atol=1e-4)


def test_a_factor_of_what_is_computed_stays():
    rows = [("Relu", ["u"], "w", {}), ("Gemm", ["x", "w"], "y", {"alpha": 2.0})]
    given = model(rows, {}, {"x": ["n", 40], "u": [40, 32]}, ["y"])
    assert not PlainGemm()(given).modified


def test_new_names_avoid_every_scope():
    given = text(CALLS)
    gather_names(given)
    body = next(n for n in given.graph if n.op_type == "If").attributes["then_branch"].as_graph()
    assert unique_name(body, "new") == "new"
    assert unique_name(given.graph, "new") == "new_1"
    assert unique_name(body, "z") == "z_1"
    assert unique_name(given.graph, "q2") == "q2_1"
