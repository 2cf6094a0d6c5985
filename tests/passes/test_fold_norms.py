"""Gains and biases of norms go into the layers behind them; the outputs stay."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from lwqc.model.weights import stored_tensor
from lwqc.passes.fold_norms import FoldNorms, find_foldable_norms
from lwqc.runtime.session import Session
from lwqc.testing import applied
from lwqc.testing.oracles import difference
from tests.conftest import ZOO
from tests.small_models import Small
from tests.zoo.materialize import materialize, sample_inputs

TOLERANCE = 1e-4


def check(built, inputs, folded):
    """Fold, compare, return the folded model and why other norms stay."""
    found = find_foldable_norms(built)
    assert len(found.norms) == folded
    names = set(built.graph.initializers)
    expected = Session(built)(inputs)
    done = applied(FoldNorms(), built)
    assert bool(done.changes) == bool(folded)
    assert set(done.refused) == {s.name for s in found.skipped}
    moved = done.model
    assert not applied(FoldNorms(), moved).changes
    assert names <= set(moved.graph.initializers)
    onnx.checker.check_model(ir.to_proto(moved), full_check=True)
    found = Session(moved)(inputs)
    assert list(found) == list(expected)
    assert difference(expected, found) <= TOLERANCE
    for norm in find_foldable_norms(moved).norms:
        assert (values(norm.gain) == 1).all()
        assert norm.bias is None or not values(norm.bias).any()
    return moved, done.refused


def values(port):
    return stored_tensor(port.node.inputs[port.operand]).numpy()


def built(g, *outputs):
    return ir.from_proto(g.build(*outputs))


def norm(g, x, size=8, **names):
    """A gain of any sign, and with a zero."""
    gain = g.rng.standard_normal(size).astype(np.float32)
    gain[0] = 0
    return g.op("LayerNormalization", x, g.keep(gain), g.weight(size), **names)


def test_layers_with_and_without_a_bias():
    g = Small()
    y = norm(g, g.input(2, 8))
    a = g.op("Gemm", y, g.weight(5, 8), g.weight(5), transB=1)
    b = g.op("Gemm", y, g.weight(8, 5))
    c = g.op("Add", g.linear(y, 8, 5), g.weight(5))
    d = g.linear(y, 8, 5, name="d")
    moved, _ = check(built(g, g.op("Sum", a, b, c, d)), g.feeds, 1)
    assert sum(n.op_type == "Add" for n in moved.graph) == 2
    assert "d/bias" in moved.graph.initializers


def test_result_of_a_layer_without_a_bias_keeps_its_name():
    g = Small()
    y = norm(g, g.input(2, 3, 8))
    out = g.op("MatMul", y, g.weight(8, 5), name="out")
    check(built(g, out, g.op("Relu", out)), g.feeds, 1)


def test_norm_without_a_bias_needs_no_add():
    g = Small()
    y = g.op("LayerNormalization", g.input(2, 3, 8), g.gains(8))
    moved, _ = check(built(g, g.linear(y, 8, 5)), g.feeds, 1)
    assert [n.op_type for n in moved.graph] == ["LayerNormalization", "MatMul"]


def test_decomposed_norm():
    g = Small()
    x = g.input(2, 3, 8)
    root = g.op("Sqrt", g.op("ReduceMean", g.op("Mul", x, x), g.ints(-1), keepdims=1))
    y = g.op("Mul", g.gains(8), g.op("Div", x, root))
    y = g.op("Add", y, g.weight(8))
    moved, _ = check(built(g, g.linear(y, 8, 5)), g.feeds, 1)
    assert [n.op_type for n in moved.graph].count("Mul") == 2


def test_readers_behind_moves():
    g = Small()
    y = norm(g, g.input(2, 3, 8))
    a = g.op("Gemm", g.op("Reshape", y, g.ints(-1, 8)), g.weight(8, 5))
    b = g.linear(g.op("Slice", y, g.ints(2), g.ints(6), g.ints(2)), 4, 5)
    c = g.op("Gemm", g.op("Flatten", y), g.weight(24, 5), g.weight(5))
    turned = g.op("Transpose", y, perm=[0, 2, 1])
    d = g.op("Conv", turned, g.weight(5, 8, 1))
    check(built(g, a, b, c, d), g.feeds, 1)


def test_gain_bias_and_layer_bias_that_others_share():
    g = Small()
    x, gain, bias, own = g.input(3, 8), g.gains(8), g.weight(8), g.weight(5)
    y, z = (g.op("LayerNormalization", v, gain, bias) for v in (x, g.op("Neg", x)))
    a = g.op("Gemm", y, g.weight(8, 5), own)
    b = g.op("Gemm", z, g.weight(8, 5), own)
    rest = g.op("Mul", g.op("Add", x, bias), gain)
    check(built(g, g.op("Add", a, b), rest), g.feeds, 2)


def test_convolutions():
    g = Small()
    statistics = [g.gains(8), g.weight(8), g.weight(8), g.gains(8)]
    y = g.op("BatchNormalization", g.input(2, 8, 5, 5), *statistics)
    a = g.op("Conv", y, g.weight(6, 8, 3, 3))
    b = g.op("Conv", y, g.weight(8, 4, 3, 3), g.weight(8), group=2)
    c = g.op("Conv", y, g.weight(8, 1, 3, 3), group=8)
    check(built(g, a, b, c), g.feeds, 1)


def test_half_precision():
    g = Small()
    x = g.given("x", g.rng.standard_normal((4, 8)).astype(np.float16))
    gain, bias = (g.keep(g.rng.uniform(0.5, 1.5, 8).astype(np.float16)) for _ in range(2))
    y = g.op("LayerNormalization", x, gain, bias)
    y = g.op("MatMul", y, g.keep(g.rng.standard_normal((8, 6)).astype(np.float16)))
    model = built(g, y)
    expected = Session(model)(g.feeds)
    FoldNorms()(model)
    assert {v.const_value.dtype for v in model.graph.initializers.values()} == {ir.DataType.FLOAT16}
    assert difference(expected, Session(model)(g.feeds)) <= 4 * 2.0**-11


def refused(g, *outputs):
    _, reasons = check(built(g, *outputs), g.feeds, 0)
    assert len(reasons) == 1
    return next(iter(reasons.values()))


def test_padded_convolution():
    g = Small()
    statistics = [g.gains(8), g.weight(8), g.weight(8), g.gains(8)]
    y = g.op("BatchNormalization", g.input(2, 8, 5, 5), *statistics)
    assert "pads with zeros" in refused(g, g.op("Conv", y, g.weight(6, 8, 3, 3), pads=[1] * 4))


def test_another_reader():
    g = Small()
    y = norm(g, g.input(3, 8))
    assert "Sigmoid" in refused(g, g.op("Add", g.linear(y, 8, 8), g.op("Sigmoid", y)))


def test_an_operator_in_between():
    g = Small()
    y = g.op("Relu", norm(g, g.input(3, 8)))
    assert "Relu" in refused(g, g.linear(y, 8, 8))


def test_result_that_is_read_before_the_bias():
    g = Small()
    y = g.op("Mul", g.input(3, 8), g.gains(8))
    z = g.op("Add", y, g.weight(8))
    reason = refused(g, g.op("Add", g.linear(y, 8, 5), g.linear(z, 8, 5)))
    assert "reads it without the bias" in reason


def test_bias_that_is_padded():
    g = Small()
    y = g.op("Pad", norm(g, g.input(3, 8)), g.ints(1, 0, 0, 0))
    assert "Pad" in refused(g, g.linear(y, 8, 5))


def test_two_norms_that_are_added():
    g = Small()
    x = g.input(3, 8)
    y = g.op("Add", norm(g, x), norm(g, g.op("Neg", x)))
    _, reasons = check(built(g, g.linear(y, 8, 5)), g.feeds, 0)
    assert set(reasons.values()) == {"its result is combined with other tensors"}


def test_graph_output():
    g = Small()
    y = norm(g, g.input(3, 8), name="y")
    assert refused(g, y, g.linear(y, 8, 8)) == "is the graph output y"


def test_shared_weight():
    g = Small()
    x = g.input(3, 8)
    a = g.op("MatMul", norm(g, x), g.weight(8, 8, name="tied"))
    assert "tied has other readers" in refused(g, g.op("Add", a, g.op("MatMul", x, "tied")))


def test_bias_that_is_computed():
    g = Small()
    y = norm(g, g.input(3, 8))
    bias = g.op("Neg", g.given("b", np.ones(5, np.float32)))
    assert "not stored per channel" in refused(g, g.op("Gemm", y, g.weight(8, 5), bias))


@pytest.mark.parametrize(
    ("name", "folded"),
    [
        ("gpt2.dynamo", 6),
        ("llama.dynamo", 7),
        ("vit_small_patch16_224.dynamo", 13),
        ("convnext_tiny.dynamo", 22),
        ("densenet121.dynamo", 0),
        ("swin_t.dynamo", 15),
        ("t5.dynamo", 10),
    ],
)
def test_zoo_models(name, folded):
    path = next(p for p in ZOO if p.stem == name)
    check(ir.from_proto(materialize(path)), sample_inputs(path), folded)
