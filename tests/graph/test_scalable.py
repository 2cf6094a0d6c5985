"""What can be scaled, pinned for the zoo, and why the rest cannot."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from lwqc.graph.scalable import find_spans
from tests.passes.test_migrate_scales import fused_swiglu, grouped_query_attention
from tests.small_models import Small
from tests.zoo.materialize import materialize

# Spans by architecture. Tests of the rewrite see a span too many, never one too few.
PINS = {
    "beit_base_patch16_224.dynamo": 10,
    "bert.dynamo": 4,
    "bert.legacy": 5,
    "convformer_s18.dynamo": 59,
    "convnext_tiny.dynamo": 22,
    "cspresnet50.dynamo": 38,
    "deeplabv3_mobilenet_v3_large.dynamo": 27,
    "deit_tiny_distilled_patch16_224.dynamo": 19,
    "densenet121.dynamo": 120,
    "densenet121.legacy": 120,
    "efficientnet_b0.dynamo": 7,
    "eva02_tiny_patch14_224.dynamo": 16,
    "ghostnet_100.dynamo": 40,
    "gpt2.dynamo": 9,
    "inception_v3.dynamo": 59,
    "llama.dynamo": 13,
    "llama_past.dynamo": 10,
    "llama_past.legacy": 10,
    "maxvit_pico.dynamo": 77,
    "mixer_s32_224.dynamo": 9,
    "mixtral.dynamo": 5,
    "mobilenet_v2.dynamo": 7,
    "mobilenet_v3_large.dynamo": 24,
    "mobilenet_v3_large.legacy": 24,
    "qwen2.dynamo": 12,
    "regnet_y_400mf.dynamo": 53,
    "resnet50.dynamo": 37,
    "resnet50.legacy": 37,
    "resnext50_32x4d.dynamo": 37,
    "shufflenet_v2_x1_0.dynamo": 40,
    "shufflenet_v2_x1_0.legacy": 40,
    "swin_t.dynamo": 39,
    "t5.dynamo": 20,
    "vgg19_bn.dynamo": 18,
    "vit_small_patch16_224.dynamo": 19,
    "vit_small_patch16_224.legacy": 19,
}


def test_architectures(skeleton):
    found = find_spans(ir.from_proto(materialize(skeleton)))
    names = [span.name for span in found.spans]
    assert len(set(names)) == len(names) == PINS[skeleton.stem]
    produced = {p.node.outputs[0].name for s in found.spans for p in s.producers}
    whole = {s.name for s in found.skipped if not s.reason.startswith("in part")}
    assert not produced & whole
    for span in found.spans:
        assert span.consumers
        for port in (*span.producers, *span.consumers):
            np.broadcast_shapes(port.channels.shape, tuple(port.weight.tensor.shape))
            assert port.channels.max() < span.channels
        for consumer in span.consumers:
            assert set(consumer.features[consumer.features >= 0]) <= set(range(span.channels))


def analyse(g, *outputs):
    return find_spans(ir.from_proto(g.build(*outputs)))


def reasons(g, *outputs):
    found = analyse(g, *outputs)
    assert not found.spans
    return {s.name: s.reason for s in found.skipped}


def test_a_span_names_its_parts():
    g = Small()
    x = g.input(("n", 3), 8)
    y = g.op("LayerNormalization", x, g.gains(8, name="gain"), g.weight(8, name="bias"), name="y")
    out = g.op("Add", g.linear(y, 8, 5, name="a"), g.linear(y, 8, 5, name="b"))
    (span,) = analyse(g, out).spans
    assert (span.name, span.channels) == ("y", 8)
    assert [(p.tensor, p.kind) for p in span.producers] == [("gain", "gain"), ("bias", "bias")]
    assert [(c.tensor, c.channels.shape) for c in span.consumers] == [("a", (8, 1)), ("b", (8, 1))]
    assert all(c.activation.name == "y" for c in span.consumers)
    assert [v.name for v in span.tensors] == ["y"]
    assert all(np.array_equal(c.features, np.arange(8)) for c in span.consumers)


def test_values_of_grouped_query_attention_are_read_once_per_query_head():
    g = Small()
    (span,) = analyse(g, grouped_query_attention(g)).spans
    (consumer,) = span.consumers
    assert consumer.features.tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 5, 3, 4, 5]


def test_only_the_second_half_of_a_fused_layer():
    g = Small()
    found = analyse(g, fused_swiglu(g))
    (span,) = found.spans
    assert span.name == "up"
    assert span.producers[0].channels.ravel().tolist() == [-1] * 12 + list(range(12))
    assert next(s.reason for s in found.skipped if s.op == "MatMul").startswith("in part: ")


def hidden(g, **names):
    """relu(x a) up to its second layer."""
    return g.op("Relu", g.linear(g.input(("n", 3), 8), 8, 6, name="a"), **names)


def test_graph_output():
    g = Small()
    y = hidden(g, name="y")
    found = reasons(g, y, g.linear(y, 6, 4))
    assert found["MatMul0_0"] == "is the graph output y"


def test_weight_with_two_readers():
    g = Small()
    y = g.op("Relu", g.op("MatMul", g.input(("n", 3), 8), g.weight(8, 8, name="tied")))
    found = reasons(g, g.op("MatMul", y, "tied"))
    assert list(found.values()) == ["its weight tied has other readers"] * 2


def test_weight_that_the_caller_gives():
    g = Small()
    y = hidden(g)
    w = g.given("w", np.ones((6, 4), np.float32))
    (reason,) = reasons(g, g.op("MatMul", y, w)).values()
    assert "MatMul" in reason
    assert "sums over the scaled axis" in reason


def test_computed_bias():
    g = Small()
    x = g.input(("n", 3), 8)
    y = g.op("Gemm", x, g.weight(8, 6), g.op("Neg", g.given("b", np.ones(6, np.float32))))
    (first, _) = reasons(g, g.linear(g.op("Relu", y), 6, 4)).values()
    assert "is not stored per channel" in first


@pytest.mark.parametrize("op", ["Sigmoid", "Tanh", "Gelu", "Softmax", "Exp", "Elu"])
def test_operators_that_are_not_homogeneous(op):
    g = Small()
    y = g.op(op, g.linear(g.input(("n", 3), 8), 8, 6))
    assert f"a scale does not pass through {op} {op}1" in reasons(g, g.linear(y, 6, 4)).values()


@pytest.mark.parametrize(
    ("bounds", "spans"),
    [((0.0,), 1), ((0.0, 6.0), 0), ((-1.0,), 0), ((), 1)],
    ids=["relu", "relu6", "below", "none"],
)
def test_bounds(bounds, spans):
    g = Small()
    y = g.linear(g.input(("n", 3), 8), 8, 6)
    y = g.op("Clip", y, *(g.keep(np.array(b, np.float32)) for b in bounds))
    assert len(analyse(g, g.linear(y, 6, 4)).spans) == spans


def test_the_same_number_added_to_all_channels():
    g = Small()
    y = g.op("Add", hidden(g), g.keep(np.array(1, np.float32)))
    assert "one number for all channels" in reasons(g, g.linear(y, 6, 4))["MatMul0_0"]


def test_zero_added_to_all_channels():
    g = Small()
    y = g.op("Max", hidden(g), g.keep(np.array(0, np.float32)))
    assert len(analyse(g, g.linear(y, 6, 4)).spans) == 1


def test_sum_with_something_that_is_not_scaled():
    g = Small()
    y = g.op("Add", hidden(g), g.input(("n", 3), 6, name="z"))
    assert "combines it with z, which is not scaled" in reasons(g, g.linear(y, 6, 4))["MatMul0_0"]


def test_layers_over_another_axis():
    g = Small()
    y = g.op("Relu", g.linear(g.input(2, 3, 8), 8, 6))
    y = g.linear(g.op("Transpose", y, perm=[0, 2, 1]), 3, 4)
    assert "does not sum over the scaled axis" in reasons(g, y)["MatMul0_0"]


def test_heads_folded_into_a_dynamic_batch():
    g = Small()
    y = g.op("Reshape", hidden(g), g.ints(-1, 2))
    assert "mixes the scaled axis with others" in reasons(g, g.linear(y, 2, 4))["MatMul0_0"]


def test_quadratic_operators():
    g = Small()
    y = hidden(g)
    assert "multiplies it" in reasons(g, g.linear(g.op("Mul", y, y), 6, 4))["MatMul0_0"]


def test_reduction_over_the_channels():
    g = Small()
    y = hidden(g)
    y = g.op("Sub", y, g.op("ReduceMean", y, g.ints(-1), keepdims=1))
    assert "reduces the scaled axis" in reasons(g, g.linear(y, 6, 4))["MatMul0_0"]


def test_parts_that_the_data_choose():
    g = Small()
    y = g.op("Gather", hidden(g), g.given("i", np.array([1, 2])), axis=1)
    assert "by the data" in reasons(g, g.linear(y, 2, 4))["MatMul0_0"]


def test_channels_that_are_picked_more_than_once():
    g = Small()
    y = g.op("Gather", hidden(g), g.ints(4, 4, 0), axis=1)
    (span,) = analyse(g, g.linear(y, 3, 4)).spans
    assert span.channels == 6
    assert span.consumers[0].features.tolist() == [4, 4, 0]


def test_padding_with_ones():
    g = Small()
    y = g.op("Relu", g.op("Conv", g.input(2, 3, 5, 5), g.weight(4, 3, 1, 1)))
    one = g.keep(np.array(1, np.float32))
    y = g.op("Pad", y, g.ints(0, 0, 1, 1, 0, 0, 1, 1), one)
    (first, _) = reasons(g, g.op("Conv", y, g.weight(2, 4, 3, 3))).values()
    assert "Pad" in first


def test_values_read_inside_a_body():
    text = """
        <ir_version: 10, opset_import: ["" : 20]>
        agraph (float[3, 8] x, bool c) => (float[3, 4] y)
            <float[8, 6] a, float[6, 4] b> {
            h = MatMul(x, a)
            r = Relu(h)
            p = MatMul(r, b)
            q = If(c) <
                then_branch = left () => (float[3, 6] t) { t = Exp(r) },
                else_branch = right () => (float[3, 6] e) { e = Neg(r) }
            >
            s = ReduceSum(q)
            y = Add(p, s)
        }
    """
    proto = onnx.parser.parse_model(text)
    proto.graph.ClearField("initializer")
    proto.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.ones(s, np.float32), n)
        for n, s in (("a", (8, 6)), ("b", (6, 4)))
    )
    found = find_spans(ir.from_proto(proto))
    assert not found.spans
    assert "is read in the body of If" in found.skipped[0].reason


def test_the_model_is_not_changed():
    g = Small()
    model = ir.from_proto(g.build(g.linear(hidden(g), 6, 4)))
    before = ir.to_proto(model).SerializeToString()
    find_spans(model)
    assert ir.to_proto(model).SerializeToString() == before
