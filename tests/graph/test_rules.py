"""The table of rules as a whole, barriers, and traps: shared, computed, dynamic, left out."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from lwqc.errors import InputError
from lwqc.graph.groups import Groups, find_groups
from lwqc.graph.rules import RULES
from lwqc.graph.shapes import declared_shapes
from lwqc.model.weights import stored_tensor
from lwqc.passes.prune_channels import prune_channels
from lwqc.testing.oracles import Array, Oracle, half
from tests.small_models import Small, groups_of

TOLERANCE = 2e-5
# Operators of the standard without a rule; what they touch is frozen, with the reason.
WITHOUT_RULE = {
    "runs a body": "If Loop Scan SequenceMap",
    "makes sequences, optionals or strings": (
        "ConcatFromSequence Optional OptionalGetElement OptionalHasElement RegexFullMatch "
        "SequenceAt SequenceConstruct SequenceEmpty SequenceErase SequenceInsert SequenceLength "
        "SplitToSequence StringConcat StringNormalizer StringSplit TfIdfVectorizer"
    ),
    "gives sizes or positions that depend on data": (
        "Compress ImageDecoder MaxRoiPool MaxUnpool NonMaxSuppression NonZero RoiAlign Unique"
    ),
    "makes numbers in order or at random, without channels": (
        "BlackmanWindow EyeLike HammingWindow HannWindow MelWeightMatrix Multinomial RandomNormal "
        "RandomNormalLike RandomUniform RandomUniformLike"
    ),
    "signal processing and geometry, rare next to weights": (
        "AffineGrid BitCast CausalConvWithState CenterCropPad Col2Im DFT DeformConv Det GridSample "
        "LinearAttention STFT SwiGLU TensorScatter"
    ),
    "of training": "NegativeLogLikelihoodLoss SoftmaxCrossEntropyLoss",
    "of quantized models that are not written as QDQ": "ConvInteger QLinearConv QLinearMatMul",
    "is read where it is used": "Constant",
    "replaced by another operator long ago": "Scatter",
}
# Written by ONNX Runtime under the standard's domain, but in no version of the standard.
NOT_IN_THE_STANDARD = {"SimplifiedLayerNormalization"}


def test_every_rule_is_for_an_operator_of_the_standard() -> None:
    known = {s.name for s in onnx.defs.get_all_schemas_with_history() if not s.domain}
    named = {op for domain, op in RULES if not domain}
    assert named - known == NOT_IN_THE_STANDARD


def test_operators_without_a_rule_are_known() -> None:
    known = {s.name for s in onnx.defs.get_all_schemas() if not s.domain}
    listed = {op for names in WITHOUT_RULE.values() for op in names.split()}
    assert known - {op for domain, op in RULES if not domain} <= listed
    assert not listed & {op for domain, op in RULES if not domain}


def names(groups: Groups) -> set[str]:
    return {g.name for g in groups}


def reason(groups: Groups, tensor: str, axis: int) -> str:
    """Why an axis of a weight is frozen; fails if it is not."""
    return next(a.reason for a in groups.frozen if (a.tensor, a.axis) == (tensor, axis))


def assert_oracles(model: ir.Model, groups: Groups, small: Small) -> None:
    oracle = Oracle(model, groups, small.feeds, tolerance=TOLERANCE)
    assert oracle.permutation(groups) <= TOLERANCE
    for seed in range(3):
        removed = oracle.possible(half([g for g in groups if not g.statistics], seed))
        assert oracle.zeroed_is_removed(removed) <= TOLERANCE
        removed = oracle.possible(half(groups, seed))
        assert oracle.commutation(list(groups), removed) <= TOLERANCE


def declared(small: Small, *outputs: str) -> tuple[ir.Model, Groups]:
    """With shapes from the file and ONNX's inference, as for a model with dynamic dimensions."""
    model = ir.from_proto(small.build(*outputs))
    shapes, missing = declared_shapes(model)
    assert not missing
    return model, find_groups(model, shapes)


def two_layers(s: Small) -> str:
    x = s.op("Relu", s.linear(s.input(2, 5, 6), 6, 8, name="first"))
    return s.linear(x, 8, 4, name="last")


# Barriers.


def test_unknown_operator_is_a_barrier() -> None:
    s = Small()
    x = s.linear(s.input(2, 5, 6), 6, 8, name="first")
    x = s.op("Det", s.op("Reshape", x, s.ints(2, 5, 2, 2, 2)))
    _, groups = groups_of(s, s.linear(x, 2, 4, name="last"))
    assert [barrier.reason for barrier in groups.barriers] == ["lwqc has no rule for this operator"]
    assert not names(groups)
    assert reason(groups, "first", 1) == "Det Det2: lwqc has no rule for this operator"


def test_tensor_without_a_shape_is_a_barrier() -> None:
    s = Small()
    proto = s.build(two_layers(s))
    groups = find_groups(ir.from_proto(proto), {})
    assert not names(groups)
    assert groups.barriers


def branch(name: str, used: str) -> onnx.GraphProto:
    made = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
    return helper.make_graph([helper.make_node("Neg", [used], [name])], name, [], [made])


def test_what_the_branches_of_an_if_read_is_frozen() -> None:
    s = Small()
    x = s.linear(s.input(2, 5, 6), 6, 8, name="first")
    y = s.linear("x", 6, 8, name="second")
    condition = s.given("condition", np.asarray(True))
    z = s.op("If", condition, then_branch=branch("a", x), else_branch=branch("b", y))
    z = s.linear(z, 8, 8, name="third")
    model, groups = groups_of(s, s.linear(s.op("Relu", z), 8, 4, name="last"))
    assert names(groups) == {"third:1"}
    assert "body" in reason(groups, "first", 1)
    assert "body" in reason(groups, "second", 1)
    assert_oracles(model, groups, s)


def test_what_a_loop_captures_is_frozen() -> None:
    s = Small()
    x = s.linear(s.input(2, 5, 6), 6, 8, name="first")
    y = s.linear("x", 6, 8, name="second")
    body = helper.make_graph(
        [
            helper.make_node("Add", ["state", x], ["next"]),
            helper.make_node("Identity", ["go"], ["still"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("still", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, None),
        ],
    )
    z = s.op("Loop", s.keep(np.asarray(2)), "", y, body=body)
    _, groups = groups_of(s, s.linear(z, 8, 4, name="last"))
    assert not names(groups)
    assert all("body" in reason(groups, w, 1) for w in ("first", "second"))


@pytest.mark.parametrize(("kind", "gates"), [("LSTM", 4), ("GRU", 3)])
def test_recurrent_layer_with_the_batch_first(kind: str, gates: int) -> None:
    """ONNX Runtime 1.31 has no kernel for layout 1, so only the groups can be looked at."""
    s = Small()
    x = s.linear(s.input(2, 5, 6), 6, 4, name="first")
    w, r = s.weight(1, gates * 3, 4, name="w"), s.weight(1, gates * 3, 3)
    states = s.ops(kind, x, w, r, names=["y", "h"], hidden_size=3, layout=1)
    ends = [s.linear(state, 3, 4, name=f"last_{state}") for state in states]
    inferred = onnx.shape_inference.infer_shapes(s.bare(*ends), data_prop=True)
    model = ir.from_proto(inferred)
    groups = find_groups(model, declared_shapes(model)[0])
    assert not groups.barriers
    assert {g.name: g.size for g in groups} == {"first:1": 4, "w:1": 3}


def test_what_a_body_reads_of_stored_tensors_is_frozen() -> None:
    s = Small()
    x = s.linear(s.input(2, 5, 6), 6, 8, name="first")
    gains = s.gains(8, name="gains")
    condition = s.given("condition", np.asarray(True))
    y = s.op("If", condition, then_branch=branch("a", gains), else_branch=branch("b", gains))
    x = s.op("Mul", x, gains)
    x = s.op("Add", s.linear(x, 8, 8, name="second"), y)
    _, groups = groups_of(s, s.linear(x, 8, 4, name="last"))
    assert not names(groups)
    assert "body" in reason(groups, "first", 1)


# Stored tensors.


def test_shared_constants_are_copied_where_readers_differ() -> None:
    s = Small()
    bias = s.weight(8, name="bias")
    target = s.ints(2, 5, 2, 4, name="target")
    x, total = s.input(2, 5, 6), ""
    for i in range(2):
        y = s.op("Add", s.linear(x, 6, 8, name=f"in{i}"), bias)
        y = s.op("Mul", s.op("Reshape", y, target), s.weight(2, 4))
        y = s.linear(s.op("Reshape", s.op("Tanh", y), s.ints(2, 5, 8)), 8, 4, name=f"out{i}")
        total = s.op("Add", total, y) if total else y
    model, groups = groups_of(s, total)
    assert names(groups) == {"in0:1/0", "in0:1/1", "in1:1/0", "in1:1/1"}
    assert_oracles(model, groups, s)
    prune_channels(groups, {"in0:1/1": [1], "in1:1/1": [0, 3]})
    assert [t.shape for t in stored_operands(model, "Add")] == [(6,), (4,)]
    targets = [t.tolist() for t in stored_operands(model, "Reshape")]
    assert targets == [[2, 5, 2, 3], [2, 5, 6], [2, 5, 2, 2], [2, 5, 4]]


def test_shared_constants_stay_shared_where_readers_agree() -> None:
    s = Small()
    x, bias = s.linear(s.input(2, 5, 6), 6, 8, name="first"), s.weight(8, name="bias")
    x = s.op("Add", s.op("Relu", s.op("Add", x, bias)), bias)
    model, groups = groups_of(s, s.linear(x, 8, 4, name="last"))
    assert names(groups) == {"first:1"}
    assert_oracles(model, groups, s)
    prune_channels(groups, {"first:1": [2]})
    assert len(model.graph.initializers) == 3


def stored_operands(model: ir.Model, op_type: str) -> list[Array]:
    """Values of the stored tensors that nodes of a type read, in order."""
    read = (v for node in model.graph if node.op_type == op_type for v in node.inputs)
    return [tensor.numpy() for v in read if (tensor := stored_tensor(v)) is not None]


def test_initializer_that_is_a_graph_output_stays_whole() -> None:
    s = Small()
    proto = s.build(two_layers(s))
    proto.graph.output.append(helper.make_tensor_value_info("first", TensorProto.FLOAT, [6, 8]))
    model = ir.from_proto(proto)
    groups = find_groups(model, declared_shapes(model)[0])
    assert not names(groups)
    assert reason(groups, "first", 1) == "graph output first"


def test_initializer_that_the_caller_can_replace_stays_whole() -> None:
    s = Small()
    proto = s.build(two_layers(s))
    proto.graph.input.append(helper.make_tensor_value_info("first", TensorProto.FLOAT, [6, 8]))
    model = ir.from_proto(proto)
    groups = find_groups(model, declared_shapes(model)[0])
    assert not names(groups)
    assert reason(groups, "last", 0) == "graph input first"


def test_graph_output_can_be_freed() -> None:
    s = Small()
    model = ir.from_proto(s.build(two_layers(s)))
    shapes, _ = declared_shapes(model)
    output = model.graph.outputs[0].name or ""
    assert names(find_groups(model, shapes)) == {"first:1"}
    assert names(find_groups(model, shapes, resizable_outputs=[output])) == {"first:1", "last:1"}


# Sizes that the graph computes.


def heads_from_shape(s: Small, zero: bool) -> str:
    """Attention as exporters write it: target `[Shape(x)[0] or 0, -1, heads, d]`, scale by size."""
    x = s.input(("batch", 3), ("length", 5), 6)
    shape = s.op("Shape", x)
    batch = s.ints(0) if zero else s.op("Gather", shape, s.ints(0))
    length = s.op("Gather", shape, s.ints(1))
    split = s.op("Concat", batch, s.ints(-1), s.ints(2, 4), axis=0)
    q, k, v = (
        s.op("Transpose", s.op("Reshape", s.linear(x, 6, 8, name=n), split), perm=[0, 2, 1, 3])
        for n in "qkv"
    )
    size = s.op("Gather", s.op("Shape", q), s.ints(-1))
    scale = s.op("Sqrt", s.op("Cast", size, to=TensorProto.FLOAT))
    scores = s.op("MatMul", q, s.op("Transpose", k, perm=[0, 1, 3, 2]))
    scores = s.op("Softmax", s.op("Div", scores, scale), axis=-1)
    mixed = s.op("Transpose", s.op("MatMul", scores, v), perm=[0, 2, 1, 3])
    sizes = s.op("Shape", mixed)
    merged = s.op(
        "Mul", s.op("Gather", sizes, s.ints(2)), s.op("Gather", sizes, s.ints(3))
    )  # fmt: skip
    target = s.op("Concat", batch, s.ints(0) if zero else length, merged, axis=0)
    return s.linear(s.op("Reshape", mixed, target), 8, 4, name="last")


@pytest.mark.parametrize("zero", [False, True])
def test_sizes_computed_from_shapes(zero: bool) -> None:
    s = Small()
    model, groups = declared(s, heads_from_shape(s, zero))
    assert not groups.barriers
    assert {g.name: g.size for g in groups} == {"q:1/0": 2, "q:1/1": 4, "v:1/1": 4}
    assert_oracles(model, groups, s)


def test_batch_and_heads_merged() -> None:
    """`[batch * heads, T, d]` with a dynamic batch, as old exporters write attention."""
    s = Small()
    x = s.input(("batch", 3), 5, 6)
    x = s.op("Reshape", s.linear(x, 6, 8, name="first"), s.ints(0, 5, 2, 4))
    x = s.op("Reshape", s.op("Transpose", x, perm=[0, 2, 1, 3]), s.ints(-1, 5, 4))
    x = s.linear(s.op("Tanh", x), 4, 3, name="inside")
    x = s.op("Transpose", s.op("Reshape", x, s.ints(-1, 2, 5, 3)), perm=[0, 2, 1, 3])
    x = s.op("Reshape", x, s.ints(0, 0, 6))
    model, groups = declared(s, s.linear(x, 6, 4, name="last"))
    assert not groups.barriers
    assert names(groups) == {"first:1/0", "first:1/1", "inside:1"}
    assert_oracles(model, groups, s)


def test_lists_and_numbers_in_constant_nodes() -> None:
    """`Constant` with `value_ints` and `value_float`, as onnxscript writes them."""
    s = Small()

    def ints(*values: int) -> str:
        return s.op("Constant", value_ints=values)

    x = s.linear(s.input(2, 5, 6), 6, 8, name="first")
    x = s.op("Mul", x, s.op("Constant", value_float=0.5))
    x = s.op("Mul", s.op("Reshape", x, ints(2, 5, 1, 8)), s.gains(1, 8))
    a, b = s.ops("Split", s.op("Reshape", x, ints(2, 5, 8)), ints(5, 3), names=["a", "b"], axis=2)
    a = s.op("Slice", a, ints(0), ints(5), ints(2))
    x = s.op("Tanh", s.op("Concat", b, a, axis=2))
    model, groups = groups_of(s, s.linear(x, 8, 4, name="last"))
    assert names(groups) == {"first:1/0", "first:1/1"}
    assert_oracles(model, groups, s)


def test_expand_to_a_computed_shape() -> None:
    s = Small()
    x = s.linear(s.input(("batch", 3), ("length", 5), 6), 6, 8, name="first")
    row = s.op("Expand", s.weight(1, 1, 8, name="row"), s.op("Shape", x))
    zeros = s.op("ConstantOfShape", s.op("Shape", x))
    x = s.op("Add", s.op("Add", x, row), zeros)
    model, groups = declared(s, s.linear(s.op("Relu", x), 8, 4, name="last"))
    assert names(groups) == {"first:1"}
    assert_oracles(model, groups, s)


# Requests that cannot be met.


def test_a_dimension_keeps_an_index() -> None:
    s = Small()
    _, groups = groups_of(s, two_layers(s))
    with pytest.raises(InputError, match="nothing would be left of axis"):
        prune_channels(groups, {"first:1": list(range(8))})


def test_unknown_group_and_channel_are_named() -> None:
    s = Small()
    _, groups = groups_of(s, two_layers(s))
    with pytest.raises(InputError, match="nowhere:0: the model has no such group"):
        prune_channels(groups, {"nowhere:0": [0]})
    with pytest.raises(InputError, match="first:1: has 8 channels, there is no channel 8"):
        prune_channels(groups, {"first:1": [8]})


def test_a_squeeze_without_axes_keeps_a_channel_axis_that_became_one() -> None:
    s = Small()
    x = s.linear(s.input(2, 6), 6, 2, name="first")
    x = s.op("Squeeze", s.op("Unsqueeze", x, s.ints(1)))
    model, groups = declared(s, s.linear(x, 2, 3, name="second"))
    assert names(groups) == {"first:1"}
    assert_oracles(model, groups, s)
