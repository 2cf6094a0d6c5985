"""Scaling all spans of a model at once leaves its outputs; scaling only producers does not."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lwqc.errors import InputError
from lwqc.graph.scalable import find_spans
from lwqc.graph.scale_rules import RULES, several, single
from lwqc.model.weights import stored_tensor
from lwqc.passes.migrate_scales import MigrateScales, multiply, span_factors
from lwqc.runtime.session import Session
from lwqc.testing.oracles import difference, session
from tests.conftest import ZOO
from tests.random_graphs import KINDS, feeds, models
from tests.small_models import Small
from tests.zoo.materialize import materialize, sample_inputs

TOLERANCE = 1e-4


def random_scales(spans, seed=0):
    rng = np.random.default_rng(seed)
    return {s.name: np.exp(rng.uniform(np.log(0.25), np.log(4), s.channels)) for s in spans}


def check(built, inputs, tolerance=TOLERANCE, seed=0):
    """All spans at once, and the control; returns the scaled model."""
    spans = find_spans(built).spans
    names = set(built.graph.initializers)
    scales = random_scales(spans, seed)
    assert len(scales) == len(spans)
    expected = Session(built)(inputs)
    moved = built.clone()
    assert MigrateScales(scales)(moved).modified == bool(spans)
    assert names <= set(moved.graph.initializers)
    onnx.checker.check_model(ir.to_proto(moved), full_check=True)
    assert difference(expected, Session(moved)(inputs)) <= tolerance
    if spans:
        broken = built.clone()
        found = {s.name: s for s in find_spans(broken).spans}
        half = [
            factor
            for name, s in scales.items()
            for factor in span_factors(found[name], s)
            if factor.port in found[name].producers
        ]
        multiply(broken.graph, half)
        assert difference(expected, Session(broken)(inputs)) > 30 * tolerance
    return moved


def norm_with_two_readers(g):
    x = g.input(("n", 3), 8)
    y = g.op("LayerNormalization", x, g.gains(8), g.weight(8), name="normed")
    return g.op("Add", g.linear(y, 8, 5), g.linear(y, 8, 5))


def decomposed_norm(g):
    x = g.input(("n", 3), 8)
    square = g.op("ReduceMean", g.op("Mul", x, x), g.ints(-1), keepdims=1)
    y = g.op("Mul", g.op("Div", x, g.op("Sqrt", square)), g.gains(8), name="scaled")
    return g.linear(g.op("Add", y, g.weight(8), name="normed"), 8, 5)


def conv_block(g):
    x = g.input(2, 3, 9, 9)
    y = g.op("Conv", x, g.weight(8, 3, 3, 3), g.weight(8), pads=[1, 1, 1, 1], name="raw")
    statistics = [g.gains(8), g.weight(8), g.weight(8), g.gains(8)]
    y = g.op("BatchNormalization", y, *statistics, name="normed")
    y = g.op("MaxPool", g.op("Relu", y), kernel_shape=[2, 2])
    y = g.op("Conv", y, g.weight(6, 8, 3, 3), g.weight(6), pads=[1, 1, 1, 1], name="second")
    y = g.op("Flatten", g.op("GlobalAveragePool", g.op("LeakyRelu", y)))
    return g.op("Gemm", y, g.weight(4, 6), g.weight(4), transB=1)


def depthwise(g):
    x = g.input(2, 3, 9, 9)
    y = g.op("Relu", g.op("Conv", x, g.weight(8, 3, 1, 1), name="first"))
    y = g.op("Relu", g.op("Conv", y, g.weight(16, 1, 3, 3), g.weight(16), group=8, name="second"))
    y = g.op("Relu", g.op("Conv", y, g.weight(12, 4, 3, 3), group=4, name="third"))
    return g.op("Conv", y, g.weight(2, 12, 1, 1))


def flattened_convolution(g):
    x = g.input(("n", 2), 3, 5, 5)
    y = g.op("Relu", g.op("Conv", x, g.weight(4, 3, 3, 3), name="first"))
    return g.op("Gemm", g.op("Reshape", y, g.ints(0, -1)), g.weight(36, 5))


def swiglu(g):
    x = g.input(("n", 3), 8)
    gate, up = g.linear(x, 8, 12), g.linear(x, 8, 12, name="up")
    y = g.op("Mul", g.op("Mul", gate, g.op("Sigmoid", gate)), up)
    return g.linear(y, 12, 8)


def fused_swiglu(g):
    x = g.input(("n", 3), 8)
    gate, up = g.ops("Split", g.linear(x, 8, 24), names=["gate", "up"], num_outputs=2, axis=-1)
    return g.linear(g.op("Mul", g.op("Gelu", gate), up), 12, 8)


def relu_glu(g):
    x = g.input(("n", 3), 8)
    gate, up = g.linear(x, 8, 12), g.linear(x, 8, 12)
    return g.linear(g.op("Mul", g.op("Relu", gate), up), 12, 8)


def gemms(g):
    x = g.input(("n", 3), 8)
    y = g.op("Relu", g.op("Gemm", x, g.weight(8, 12), g.weight(1, 12), name="first"))
    y = g.op("Relu", g.op("Gemm", y, g.weight(6, 12), g.weight(6), transB=1, name="second"))
    turned = g.op("Transpose", g.weight(5, 6), perm=[1, 0])
    return g.op("MatMul", y, turned)


def residual_stream(g):
    x = g.input(2, 3, 5, 5)
    y = g.op("Relu", g.op("Conv", x, g.weight(6, 3, 1, 1)))
    inner = g.op("Sigmoid", g.op("Conv", y, g.weight(6, 6, 1, 1)))
    y = g.op("Add", y, g.op("Conv", inner, g.weight(6, 6, 1, 1)), name="stream")
    return g.op("Conv", g.op("Relu", y), g.weight(2, 6, 1, 1))


def joined_branches(g):
    x = g.input(2, 3, 5, 5)
    a = g.op("Relu", g.op("Conv", x, g.weight(4, 3, 1, 1)))
    b = g.op("Sigmoid", g.op("Conv", x, g.weight(5, 3, 1, 1)))
    c = g.op("AveragePool", g.op("Conv", x, g.weight(6, 3, 1, 1)), kernel_shape=[1, 1])
    return g.op("Conv", g.op("Concat", a, b, c, axis=1), g.weight(2, 15, 3, 3))


def grouped_query_attention(g):
    x = g.input(("b", 2), ("t", 5), 8)
    q = heads(g, g.linear(x, 8, 12), 4)
    k, v = (repeated(g, heads(g, g.linear(x, 8, 6), 2)) for _ in range(2))
    scores = g.op("MatMul", q, g.op("Transpose", k, perm=[0, 1, 3, 2]))
    y = g.op("Transpose", g.op("MatMul", g.op("Softmax", scores), v), perm=[0, 2, 1, 3])
    return g.linear(g.op("Reshape", y, g.ints(0, 0, 12)), 12, 8)


def heads(g, x, count):
    return g.op("Transpose", g.op("Reshape", x, g.ints(0, 0, count, 3)), perm=[0, 2, 1, 3])


def repeated(g, x):
    y = g.op("Expand", g.op("Unsqueeze", x, g.ints(2)), g.ints(1, 1, 2, 1, 1))
    return g.op("Reshape", y, g.op("Concat", g.op("Shape", x, end=1), g.ints(4, -1, 3), axis=0))


def shared_gain_and_bias(g):
    x = g.input(("n", 3), 8)
    gain, bias = g.gains(8), g.weight(8)
    a = g.op("LayerNormalization", x, gain, bias)
    b = g.op("LayerNormalization", g.op("Mul", x, x), gain, bias)
    return g.op("Add", g.linear(a, 8, 5), g.linear(b, 8, 5))


def two_layers(op):
    def make(g):
        return g.linear(g.op(op, g.linear(g.input(3, 8), 8, 6)), 6, 4)

    return make


GRAPHS = {
    norm_with_two_readers: [8],
    decomposed_norm: [8],
    conv_block: [8, 6],
    depthwise: [8, 16, 12],
    flattened_convolution: [4],
    swiglu: [12],
    fused_swiglu: [12],
    relu_glu: [12],
    gemms: [12, 6],
    residual_stream: [6],
    joined_branches: [10],
    grouped_query_attention: [6],
    shared_gain_and_bias: [8, 8],
}


def small(make):
    g = Small()
    return ir.from_proto(g.build(make(g))), g.feeds


@pytest.mark.parametrize(
    ("make", "channels"), GRAPHS.items(), ids=lambda x: getattr(x, "__name__", "")
)
def test_hand_made_graphs(make, channels):
    built, inputs = small(make)
    assert [s.channels for s in find_spans(built).spans] == channels
    check(built, inputs)


def test_half_precision():
    g = Small()
    x = g.given("x", g.rng.standard_normal((4, 8)).astype(np.float16))
    vectors = [g.keep(g.rng.uniform(0.5, 1.5, 8).astype(np.float16)) for _ in range(2)]
    y = g.op("LayerNormalization", x, *vectors)
    y = g.op("MatMul", y, g.keep(g.rng.standard_normal((8, 6)).astype(np.float16)))
    built = ir.from_proto(g.build(g.op("Cast", y, to=onnx.TensorProto.FLOAT)))
    moved = check(built, g.feeds, tolerance=4 * 2.0**-11)  # a few roundings to 11 bits
    dtypes = {v.const_value.dtype for v in moved.graph.initializers.values()}
    assert dtypes == {ir.DataType.FLOAT16}


@given(models(KINDS), st.integers(0, 2**31))
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
def test_random_graphs(proto, seed):
    built = ir.from_proto(proto)
    inputs, scales = feeds(proto, seed), random_scales(find_spans(built).spans, seed)
    expected = session(built)(inputs)
    MigrateScales(scales)(built)
    assert difference(expected, session(built)(inputs)) <= TOLERANCE


@pytest.mark.parametrize(
    "name",
    [
        *("gpt2.dynamo", "llama.dynamo", "vit_small_patch16_224.legacy", "mobilenet_v2.dynamo"),
        *("convnext_tiny.dynamo", "swin_t.dynamo", "shufflenet_v2_x1_0.dynamo", "t5.dynamo"),
    ],
)
def test_zoo_models(name):
    path = next(p for p in ZOO if p.stem == name)
    check(ir.from_proto(materialize(path)), sample_inputs(path))


@pytest.mark.parametrize(
    ("make", "op", "broken"),
    [
        (two_layers("Sigmoid"), "Sigmoid", single.same),
        (two_layers("Softmax"), "Softmax", single.same),
        (two_layers("Elu"), "Elu", single.same),
        (relu_glu, "Mul", several.total),
        (residual_stream, "Add", several.multiply),
        (conv_block, "BatchNormalization", single.same),
    ],
    ids=lambda x: getattr(x, "__name__", str(x)),
)
def test_a_wrong_rule_is_noticed(monkeypatch, make, op, broken):
    built, inputs = small(make)
    monkeypatch.setitem(RULES, ("", op), broken)
    spans = find_spans(built).spans
    expected = Session(built)(inputs)
    MigrateScales(random_scales(spans))(built)
    assert difference(expected, Session(built)(inputs)) > 30 * TOLERANCE


def test_a_gain_that_another_node_reads_is_copied():
    g = Small()
    x, gain = g.input(3, 8), g.gains(8, name="gain")
    y = g.linear(g.op("LayerNormalization", x, gain), 8, 5)
    built = ir.from_proto(g.build(y, g.op("Add", x, gain)))
    before = stored_tensor(built.graph.initializers["gain"]).numpy().copy()
    moved = check(built, g.feeds)
    assert np.array_equal(stored_tensor(moved.graph.initializers["gain"]).numpy(), before)


def test_constants_in_nodes():
    g = Small()
    gain = g.op("Constant", value=onnx.numpy_helper.from_array(g.rng.uniform(1, 2, 8).astype("f")))
    built = ir.from_proto(g.build(g.linear(g.op("LayerNormalization", g.input(3, 8), gain), 8, 5)))
    check(built, g.feeds)


def test_rewriting_twice_with_inverse_scales_gives_the_weights_back():
    built, _ = small(conv_block)
    scales = {s.name: np.full(s.channels, 2.0) for s in find_spans(built).spans}
    moved = built.clone()
    MigrateScales(scales)(moved)
    MigrateScales({n: 1 / s for n, s in scales.items()})(moved)
    for name, value in built.graph.initializers.items():
        assert np.array_equal(
            stored_tensor(value).numpy(), stored_tensor(moved.graph.initializers[name]).numpy()
        )


def test_nothing_to_do():
    built, _ = small(swiglu)
    assert not MigrateScales({})(built).modified


@pytest.mark.parametrize(
    ("name", "scales", "message"),
    [
        ("nothing", np.ones(8), "nothing: .* no such span"),
        ("MatMul3_0", np.ones(8), "is normalised|graph output|cannot be scaled"),
        ("normed", np.ones(7), "normed: has 8 channels"),
        ("normed", np.ones((8, 1)), "normed: has 8 channels"),
        ("normed", np.zeros(8), "positive and finite"),
        ("normed", -np.ones(8), "positive and finite"),
        ("normed", np.full(8, np.nan), "positive and finite"),
        ("normed", np.full(8, np.inf), "positive and finite"),
    ],
)
def test_refusals(name, scales, message):
    built, _ = small(norm_with_two_readers)
    with pytest.raises(InputError, match=message):
        MigrateScales({name: scales})(built)
